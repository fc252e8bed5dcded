"""Perplexity against size, and the Pareto front of the models."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from quantkit.measurement.document import Report, Text, Value
from quantkit.report.drawing import INK, PAGE, SERIES, SERIES_TEXT, SOFT, Heading, Plot, distinct, draw, em_width
from quantkit.report.figures import tick
from quantkit.report.labels import Box, leader, place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABEL = 22
_FONT, _SMALL_FONT, _MANY = 11, 9, 8
"""The size of labels, and that of more labels than _MANY: smaller ones have room nearer to their points."""
_MOST = 10
"""More points have numbers, and their names stand below the plot."""
_KEY_COLUMNS, _KEY_ROW = 2, 13
_BESIDE = 9
"""A label at most this far from its point needs no line to it."""
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))


@dataclass(frozen=True)
class _Point:
    label: str
    size: float
    perplexity: float
    error: float
    color: str
    text_color: str
    reference: bool


def perplexity(report: Report, text: Text, number: int) -> Plot | None:
    """One text's plot; None where fewer than two models have a size and a perplexity on it."""
    points: list[_Point] = []
    paired = False
    candidate = 0
    labels = distinct([model.label for model in report.models], _LABEL)
    for model, label in zip(report.models, labels, strict=True):
        candidate += not model.is_reference
        on = model.on(text.name)
        if on is None or on.perplexity is None or not model.bytes or on.perplexity.value <= 0:
            continue
        measured: Value | None = on.perplexity
        if model.is_reference:
            measured = None
        elif on.difference is not None and on.difference.error is not None:
            paired, measured = True, on.difference
        number_of_color = (candidate - 1) % len(SERIES)
        colors = (INK, INK) if model.is_reference else (SERIES[number_of_color], SERIES_TEXT[number_of_color])
        error = measured.error if measured is not None and measured.error is not None else 0.0
        points.append(_Point(label, model.bytes, on.perplexity.value, error, *colors, model.is_reference))
    if len(points) < 2:
        return None
    caption = "Down and to the left is better. The line joins the models for which every other one is larger or worse."
    if paired:
        caption += (
            " Bars are one standard error of the difference from the reference, which is measured on the same tokens;"
            " perplexity's own error moves all models together and is in the table."
        )
    elif any(point.error for point in points):
        caption += " Bars are one standard error of the perplexity."
    if any(point.reference for point in points):
        caption += " The dotted line is the reference's perplexity."
    height = 300.0
    if len(points) > _MOST:
        caption += " The points are numbered by perplexity. Where they crowd, some have no number."
        height += _KEY_ROW * math.ceil(len(points) / _KEY_COLUMNS)
    name = "perplexity-size" if number == 1 else f"perplexity-size-{number}"
    title = "Perplexity against size" if len(report.texts) == 1 else f"Perplexity against size, {text.name}"
    return draw(Heading(name, "perplexity", title, caption), height, lambda figure: _fill(figure, points))


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front of (size, perplexity), by size: every other point is worse in one, or equal in both."""
    kept: list[tuple[float, float]] = []
    for size, value in sorted(set(points)):
        if not kept or value < kept[-1][1]:
            kept.append((size, value))
    return kept


def _fill(figure: "Figure", points: Sequence[_Point]) -> None:
    axes = figure.add_subplot()
    largest = max(point.size for point in points)
    unit, unit_name = next((scale, name) for scale, name in _UNITS if largest >= scale or scale == 1.0)
    across = [point.size / unit for point in points]
    up = [point.perplexity for point in points]
    _axis(axes, "x", across, [0.0] * len(across))
    _axis(axes, "y", up, [point.error for point in points])
    axes.set_xlabel(f"size in {unit_name}")
    axes.set_ylabel("perplexity")
    axes.grid(True, which="major")
    axes.tick_params(length=0)
    best = pareto(list(zip(across, up, strict=True)))
    if len(best) > 1:
        axes.plot(*zip(*best, strict=True), color=SOFT, linewidth=1.2, zorder=2)
    for point, x, y in zip(points, across, up, strict=True):
        if point.reference:
            axes.axhline(y, color=INK, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
        if point.error:
            axes.errorbar(x, y, point.error, color=point.color, linewidth=1.4, capsize=3, zorder=3)
        marker = "D" if point.reference else "o"
        axes.plot([x], [y], marker, color=point.color, markersize=7, markeredgecolor=PAGE, zorder=4)
    texts = [point.label for point in points]
    if len(points) > _MOST:
        texts = _numbers(points)
        _add_key(figure, points, texts)
    figure.draw_without_rendering()
    _label(axes, points, texts, list(zip(across, up, strict=True)), best)


def _numbers(points: Sequence[_Point]) -> list[str]:
    """The number of each point, 1 for the least perplexity; the reference keeps its name."""
    others = sorted((point for point in points if not point.reference), key=lambda point: point.perplexity)
    return [point.label if point.reference else str(1 + others.index(point)) for point in points]


def _add_key(figure: "Figure", points: Sequence[_Point], numbers: Sequence[str]) -> None:
    """Names of the numbered points in columns below the plot."""
    from matplotlib.lines import Line2D

    named = sorted(
        (pair for pair in zip(points, numbers, strict=True) if not pair[0].reference), key=lambda p: int(p[1])
    )
    marks = [
        Line2D([], [], color=point.color, marker="o", markersize=5, linestyle="", label=f"{number}  {point.label}")
        for point, number in named
    ]
    figure.legend(
        handles=marks,
        loc="outside lower center",
        ncols=_KEY_COLUMNS,
        fontsize=_SMALL_FONT,
        labelcolor=[point.text_color for point, _ in named],
        handletextpad=0.2,
        labelspacing=0.25,
    )


def _axis(axes: "Axes", which: str, values: Sequence[float], errors: Sequence[float]) -> None:
    """Limits with room for labels; a logarithmic scale where the values span more than 2.5 times."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    ends = [(value - error, value + error) for value, error in zip(values, errors, strict=True)]
    least, most = min(low for low, _ in ends), max(high for _, high in ends)
    axis = axes.xaxis if which == "x" else axes.yaxis
    limit, scale = (axes.set_xlim, axes.set_xscale) if which == "x" else (axes.set_ylim, axes.set_yscale)
    ticks: Any = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
    if max(values) > 2.5 * min(values):
        scale("log")
        # An error may be as large as its value; its bar then leaves the picture.
        least = max(least, min(values) / 2)
        reach = math.log(most / least) * 0.14
        least, most = least * math.exp(-reach), most * math.exp(reach)
        ticks = FixedLocator(_round_values(least, most))
    else:
        reach = (most - least) * 0.16 or most * 0.02 or 1.0
        least, most = least - reach, most + reach
    limit(least, most)
    axis.set_major_locator(ticks)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))


def _round_values(least: float, most: float) -> list[float]:
    """From two to seven round values between the two, for a logarithmic axis."""
    ticks: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(tenth / 10 for tenth in range(10, 100, 2))):
        powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
        values = [step * 10.0**power for power in powers for step in steps]
        inside = [value for value in values if least <= value <= most]
        if len(inside) <= 7 or not ticks:
            ticks = inside
        if len(ticks) >= 4:
            break
    return ticks[:: math.ceil(len(ticks) / 7) or 1]


def _label(
    axes: "Axes",
    points: Sequence[_Point],
    texts: Sequence[str],
    at: Sequence[tuple[float, float]],
    best: Sequence[tuple[float, float]],
) -> None:
    """Names or numbers beside the points, in the figure's own units (72 to an inch)."""
    scale = 72 / axes.figure.dpi
    inverse = axes.transData.inverted()

    def units(value: tuple[float, float]) -> tuple[float, float]:
        x, y = axes.transData.transform(value)
        return float(x) * scale, float(y) * scale

    frame = axes.get_window_extent()
    inside: Box = (frame.x0 * scale + 2, frame.y0 * scale + 2, frame.x1 * scale - 2, frame.y1 * scale - 2)
    marks: list[Box] = []
    lines: list[Box] = []
    for point, value in zip(points, at, strict=True):
        x, y = units(value)
        low, high = (units((value[0], value[1] + sign * point.error))[1] for sign in (-1, 1))
        marks.append((x - 5, min(low, y - 5), x + 5, max(high, y + 5)))
        if point.reference:
            lines.append((inside[0], y - 1, inside[2], y + 1))
    corners = [units(value) for value in best]
    for one, other in pairwise(corners):
        steps = max(1, int(math.dist(one, other) / 4))
        for step in range(steps):
            x, y = (start + (end - start) * step / steps for start, end in zip(one, other, strict=True))
            lines.append((x - 2, y - 2, x + 2, y + 2))
    # points on the line get their labels first, in case the space is too small for all
    given = zip(points, texts, at, strict=True)
    triples = sorted(given, key=lambda triple: not triple[0].reference and triple[2] not in best)
    points, texts, at = zip(*triples, strict=True)
    font = _FONT if len(points) <= _MANY else _SMALL_FONT
    sizes = [(em_width(text) * font + 2, font * 1.35) for text in texts]
    anchors = [units(value) for value in at]
    boxes = place(anchors, sizes, inside, marks, lines)
    for point, text, anchor, box in zip(points, texts, anchors, boxes, strict=True):
        if box is None:
            continue
        # at the side of its box that faces the point: the box is as wide as the widest font makes the text
        line = leader(anchor, box)
        side = "left" if line[1][0] == box[0] else "right" if line[1][0] == box[2] else "center"
        across = {"left": box[0] + 1, "right": box[2] - 1, "center": (box[0] + box[2]) / 2}[side]
        x, y = inverse.transform((across / scale, (box[1] + box[3]) / 2 / scale))
        axes.text(x, y, text, ha=side, va="center", fontsize=font, color=point.text_color, zorder=6)
        if math.dist(*line) > _BESIDE:
            ends = [inverse.transform((x / scale, y / scale)) for x, y in line]
            axes.plot(*zip(*ends, strict=True), color=point.color, linewidth=0.8, zorder=1)
