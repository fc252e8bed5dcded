"""A plot of divergence against size as SVG, written by hand: no library, a few kilobytes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 440, 70, 20, 40, 50
_COLOURS = ("#0b6e99", "#c4541a", "#5a7d2a", "#7a4fa3")
_STYLE = "text{font:12px sans-serif;fill:#333}line{stroke:#ccc}@media(prefers-color-scheme:dark){text{fill:#ddd}}"


@dataclass(frozen=True)
class Point:
    """A file: its size in MB, its mean KL divergence in nats, and its label."""

    size: float
    divergence: float
    label: str


def pareto_svg(series: Mapping[str, Sequence[Point]], title: str) -> str:
    """The points of each series, joined in the order of their sizes; the divergence has a logarithmic axis."""
    points = [point for some in series.values() for point in some]
    sizes = [point.size for point in points]
    low, high = min(sizes), max(sizes)
    margin = 0.05 * (high - low) or 1.0
    decades = [math.log10(point.divergence) for point in points]
    bottom, top = math.floor(4 * min(decades)) / 4, math.ceil(4 * max(decades)) / 4
    top = max(top, bottom + 0.25)

    def x(size: float) -> float:
        return _LEFT + (size - low + margin) / (high - low + 2 * margin) * (_WIDTH - _LEFT - _RIGHT)

    def y(decade: float) -> float:
        return _TOP + (top - decade) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<text x="{_LEFT}" y="20" font-weight="bold">{escape(title)}</text>']
    for number in range(round(4 * (top - bottom)) + 1):
        at = y(bottom + number / 4)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{10 ** (bottom + number / 4):.2g}</text>'
        )
    for number in range(5):
        size = low + number * (high - low) / 4
        parts.append(f'<text x="{x(size):.1f}" y="{_HEIGHT - 28}" text-anchor="middle">{size:.0f}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 8}" text-anchor="middle">size, MB; KL divergence, nats</text>')
    for number, (name, some) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        ordered = sorted(some, key=lambda point: point.size)
        at_points = [(x(point.size), y(math.log10(point.divergence)), point.label) for point in ordered]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b, _ in at_points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-opacity="0.5"/>')
        for a, b, label in at_points:
            parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{colour}"/>')
            parts.append(f'<text x="{a + 6:.1f}" y="{b - 6:.1f}" style="fill:{colour}">{escape(label)}</text>')
        parts.append(
            f'<text x="{_WIDTH - _RIGHT}" y="{_TOP + 16 * number}" text-anchor="end" style="fill:{colour}">'
            f"{escape(name)}</text>"
        )
    size_of = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size_of}><style>{_STYLE}</style>{"".join(parts)}</svg>\n'
