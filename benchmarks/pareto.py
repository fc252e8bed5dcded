"""A plot of divergence against size as SVG, written by hand: a few kilobytes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from quantkit.report.labels import Box, leader, place

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 440, 70, 20, 40, 50
# Text in these colours has a contrast of at least 4.5 to a white page, and to a dark one.
_LIGHT = ("#0b6e99", "#bf4f15", "#55782a", "#7a4fa3")
_DARK = ("#5fb8dd", "#f39a63", "#9cc567", "#c09be0")
# The boxes of labels: the height of a line, the width of a character, and the distance that needs a line to the point.
_LINE, _CHARACTER, _APART = 14.0, 7.0, 9.0

_At = tuple[float, float]


@dataclass(frozen=True)
class Point:
    """A file: its size in MB, its mean KL divergence in nats, and its label."""

    size: float
    divergence: float
    label: str


@dataclass(frozen=True)
class _Scale:
    """From MB and powers of ten to pixels."""

    low: float
    high: float
    bottom: float
    top: float

    def x(self, size: float) -> float:
        margin = 0.05 * (self.high - self.low) or 1.0
        return _LEFT + (size - self.low + margin) / (self.high - self.low + 2 * margin) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, decade: float) -> float:
        return _TOP + (self.top - decade) / (self.top - self.bottom) * (_HEIGHT - _TOP - _BOTTOM)


def pareto_svg(series: Mapping[str, Sequence[Point]], title: str) -> str:
    """The points of each series, joined in the order of their sizes; the divergence has a logarithmic axis."""
    ordered = {name: sorted(points, key=lambda point: point.size) for name, points in series.items()}
    scale = _scale([point for points in ordered.values() for point in points])
    paths = [
        [(scale.x(point.size), scale.y(math.log10(point.divergence))) for point in some] for some in ordered.values()
    ]
    labels = [[point.label for point in points] for points in ordered.values()]
    boxes = _boxes(paths, labels, list(ordered))
    parts = [f'<text x="{_LEFT}" y="20" style="font-weight:bold">{escape(title)}</text>', *_axes(scale)]
    for number, name in enumerate(ordered):
        at = f'x="{_WIDTH - _RIGHT}" y="{_TOP + 16 * number}" text-anchor="end"'
        shapes = [_path(paths[number]), *_points(paths[number], labels[number], boxes[number])]
        parts.append(f'<g class="s{number % len(_LIGHT)}">{"".join(shapes)}<text {at}>{escape(name)}</text></g>')
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{_style()}</style>{"".join(parts)}</svg>\n'


def _scale(points: Sequence[Point]) -> _Scale:
    sizes = [point.size for point in points]
    decades = [math.log10(point.divergence) for point in points]
    bottom, top = math.floor(4 * min(decades)) / 4, math.ceil(4 * max(decades)) / 4
    return _Scale(min(sizes), max(sizes), bottom, max(top, bottom + 0.25))


def _style() -> str:
    light, dark = (
        "".join(f".s{n}{{fill:{color}}}.s{n} line,.s{n} polyline{{stroke:{color}}}" for n, color in enumerate(colors))
        for colors in (_LIGHT, _DARK)
    )
    always = "text{font:12px sans-serif;fill:#333}g text{fill:inherit}line{stroke:#ccc}"
    always += "polyline{fill:none;stroke-opacity:0.5}"
    return f"{always}{light}@media(prefers-color-scheme:dark){{text{{fill:#ddd}}line{{stroke:#444}}{dark}}}"


def _axes(scale: _Scale) -> list[str]:
    parts: list[str] = []
    for number in range(round(4 * (scale.top - scale.bottom)) + 1):
        decade = scale.bottom + number / 4
        y = scale.y(decade)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{10**decade:.2g}</text>')
    for number in range(5):
        size = scale.low + number * (scale.high - scale.low) / 4
        parts.append(f'<text x="{scale.x(size):.1f}" y="{_HEIGHT - 28}" text-anchor="middle">{size:.0f}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 8}" text-anchor="middle">size, MB; KL divergence, nats</text>')
    return parts


def _boxes(
    paths: Sequence[Sequence[_At]], labels: Sequence[Sequence[str]], names: Sequence[str]
) -> list[list[Box | None]]:
    """Where the labels of each path are, clear of the points and of the names at the upper right."""
    points = [(x, -y) for path in paths for x, y in path]
    sizes = [(_CHARACTER * len(label) + 2, _LINE) for some in labels for label in some]
    right = _WIDTH - _RIGHT
    blocked: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    blocked += [
        (right - _CHARACTER * len(name), -_TOP - 16 * number - 4, right, 12 - _TOP - 16 * number)
        for number, name in enumerate(names)
    ]
    lines = [box for path in paths for start, end in pairwise(path) for box in _along(start, end)]
    placed = iter(place(points, sizes, (_LEFT, _BOTTOM - _HEIGHT, _WIDTH, -20), blocked, lines))
    return [[None if (box := next(placed)) is None else _down(box) for _ in path] for path in paths]


def _along(start: _At, end: _At) -> list[Box]:
    """Small boxes along a line, with y upwards."""
    steps = max(1, int(math.dist(start, end) / 4))
    middles = [[a + (b - a) * step / steps for a, b in zip(start, end, strict=True)] for step in range(steps)]
    return [(x - 2, -y - 2, x + 2, -y + 2) for x, y in middles]


def _down(box: Box) -> Box:
    return box[0], -box[3], box[2], -box[1]


def _path(path: Sequence[_At]) -> str:
    return f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in path)}"/>'


def _points(path: Sequence[_At], labels: Sequence[str], boxes: Sequence[Box | None]) -> list[str]:
    """The points with their labels, and a line from a label to a point that it is not beside."""
    parts: list[str] = []
    for (x, y), label, box in zip(path, labels, boxes, strict=True):
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        if box is None:
            continue
        _, (near_x, near_y) = line = leader((x, y), box)
        if math.dist(*line) > _APART:
            parts.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{near_x:.1f}" y2="{near_y:.1f}"/>')
        side = "start" if near_x == box[0] else "end" if near_x == box[2] else "middle"
        across = {"start": box[0] + 1, "middle": (box[0] + box[2]) / 2, "end": box[2] - 1}[side]
        parts.append(f'<text x="{across:.1f}" y="{box[3] - 3:.1f}" text-anchor="{side}">{escape(label)}</text>')
    return parts
