"""Heat maps of the error of each weight, by layer and kind of tensor."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

from quantkit.measurement.document import Model, Report
from quantkit.report.drawing import INK, PAGE, Heading, Plot, distinct, draw, short
from quantkit.report.figures import significant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ORDER = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_ROW = 19
_BANDS = 48
Cells = Mapping[tuple[str, int], float]


def tensor_errors(report: Report) -> list[Plot]:
    """A heat map for each candidate whose weights were compared, each with its own scale: their levels are far apart,
    and the plot shows which layer or kind stands out."""
    measured = [(model, _cells(model)) for model in report.candidates]
    shown = [(model, cells) for model, cells in measured if any(cells.values())]
    return [_plot(model, cells, number) for number, (model, cells) in enumerate(shown, 1)]


def _plot(model: Model, cells: Cells, number: int) -> Plot:
    kinds = _kinds(cells)
    caption = (
        "Brighter is a larger error of the weights, relative to their size (Frobenius norm). Layers run from left to"
        " right. Each model has a separate scale: compare models by the figures of their keys."
    )
    (kind, layer), most = max(cells.items(), key=lambda cell: cell[1])
    note = f"Largest: {kind} of layer {layer}, {_percent(most)}; median {_percent(median(cells.values()))}."
    outside = [error for error in model.tensor_errors if error.layer is None]
    if outside:
        listed = ", ".join(
            f"{error.kind}{f' ({error.type})' if error.type else ''} {_percent(error.error)}" for error in outside[:6]
        )
        note += f" Outside the layers: {listed}{' and others' if len(outside) > 6 else ''}."
    name = "tensor-errors" if number == 1 else f"tensor-errors-{number}"
    title = f"Error of the weights of {short(model.label, 40)}"
    heading = Heading(name, "tensors", title, caption, note)
    return draw(heading, 100 + _ROW * len(kinds), lambda figure: _fill(figure, cells, kinds))


def _cells(model: Model) -> Cells:
    """(kind, layer) -> error; where a layer has several tensors of a kind (experts), their root mean square."""
    errors_of: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for error in model.tensor_errors:
        if error.layer is not None and 0 <= error.layer < 10_000:
            errors_of[error.kind, error.layer].append(error.error)
    return {key: math.sqrt(sum(error * error for error in errors) / len(errors)) for key, errors in errors_of.items()}


def _kinds(cells: Cells) -> list[str]:
    kinds = {kind for kind, _ in cells}
    return [*(kind for kind in _ORDER if kind in kinds), *sorted(kinds - set(_ORDER))]


def _limits(cells: Cells) -> tuple[float, float]:
    """The ends of the scale, which is never so short that rounding shows as a pattern."""
    positive = [error for error in cells.values() if error > 0]
    least, most = min(positive), max(positive)
    return (least, most) if most > 1.1 * least else (least / 1.05, most * 1.05)


def _fill(figure: "Figure", cells: Cells, kinds: Sequence[str]) -> None:
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FixedLocator, MaxNLocator

    limits = _limits(cells)
    layers = max(layer for _, layer in cells) + 1
    grid = np.full((len(kinds), layers), np.nan)
    for (kind, layer), error in cells.items():
        grid[kinds.index(kind), layer] = max(error, limits[0])
    above, below = figure.subplots(2, height_ratios=[_ROW * len(kinds), 9])
    norm = LogNorm(*limits)
    edges = np.arange(layers + 1) - 0.5
    above.pcolormesh(
        edges,
        np.arange(len(kinds) + 1) - 0.5,
        np.ma.masked_invalid(grid),
        norm=norm,
        cmap=colormaps["cividis"],
        edgecolors=PAGE,
        linewidth=0.6,
    )
    above.invert_yaxis()
    above.set_yticks(range(len(kinds)), distinct(kinds, 18))
    above.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    above.set_xlabel("layer")
    scale = np.geomspace(*limits, _BANDS + 1)
    # Shapes, as a gradient would be a picture in the picture; each reaches to the end, so that no seam shows.
    for low, high in pairwise(scale):
        below.axvspan(low, limits[1], color=colormaps["cividis"](norm((low * high) ** 0.5)), linewidth=0)
    below.set_xscale("log")
    below.set_xlim(*limits)
    below.set_yticks([])
    ticks = [limits[0], math.sqrt(limits[0] * limits[1]), limits[1]]
    below.xaxis.set_major_locator(FixedLocator(ticks))
    below.xaxis.set_minor_locator(FixedLocator([]))
    below.set_xticks(ticks, [_percent(tick) for tick in ticks])
    below.set_xlabel("relative error, logarithmic")
    for axes in (above, below):
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    above.tick_params(axis="y", labelcolor=INK)


def _percent(error: float) -> str:
    return f"{significant(error * 100, 2)}%"
