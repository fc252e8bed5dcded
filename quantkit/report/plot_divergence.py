"""The distribution of each candidate's KL divergence from the reference, by token."""

from typing import TYPE_CHECKING

from quantkit.measurement.document import Divergence, Histogram, Report, Text
from quantkit.report.drawing import GRID, INK, PAGE, SERIES, Heading, Plot, distinct, draw
from quantkit.report.figures import tick

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW = 46


def divergence(report: Report, text: Text, number: int) -> Plot | None:
    """The distribution of the KL divergence on one text, a row a candidate; None where no candidate has one."""
    rows: list[tuple[str, str, Divergence, Histogram]] = []
    labels = distinct([model.label for model in report.candidates], 20)
    for color_number, (model, label) in enumerate(zip(report.candidates, labels, strict=True)):
        on = model.on(text.name)
        if on is not None and on.kl is not None and on.kl.histogram is not None:
            rows.append((label, SERIES[color_number % len(SERIES)], on.kl, on.kl.histogram))
    if not rows:
        return None
    rows.sort(key=lambda row: row[2].mean.value if row[2].mean is not None else 0.0)
    caption = (
        "Further left is closer to the reference. Each row shows how many tokens have which divergence (each row to its"
        " own height, the scale is logarithmic; the outermost bins also hold what lies beyond)."
        " The dot is the mean, the bar the 99th percentile: one token in a hundred is worse."
    )
    name = "kl-divergence" if number == 1 else f"kl-divergence-{number}"
    title = "KL divergence per token" if len(report.texts) == 1 else f"KL divergence per token, {text.name}"
    heading = Heading(name, "divergence", title, caption)
    return draw(heading, 70 + _ROW * len(rows), lambda figure: _fill(figure, rows))


def _fill(figure: "Figure", rows: list[tuple[str, str, Divergence, Histogram]]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes = figure.add_subplot()
    axes.set_xscale("log")
    left, right = _range([histogram for *_, histogram in rows])
    for row, (_, color, kl, histogram) in enumerate(rows):
        base = -float(row)
        top = max(histogram.counts)
        heights = [base + 0.8 * count / top for count in histogram.counts]
        axes.stairs(heights, histogram.edges, baseline=base, fill=True, color=color, alpha=0.45, linewidth=0)
        axes.stairs(heights, histogram.edges, baseline=base, color=color, linewidth=1.2)
        if kl.p99 is not None and left <= kl.p99 <= right:
            axes.plot([kl.p99] * 2, [base, base + 0.55], color=INK, linewidth=2, solid_capstyle="butt", zorder=4)
        if kl.mean is not None and left <= kl.mean.value <= right:
            axes.plot([kl.mean.value], [base], "o", color=INK, markersize=6, markeredgecolor=PAGE, zorder=5)
        axes.axhline(base, color=GRID, linewidth=1, zorder=1)
    axes.set_xlim(left, right)
    axes.set_ylim(-len(rows) + 0.8, 0.95)
    axes.set_yticks([-row + 0.3 for row in range(len(rows))], [label for label, *_ in rows])
    axes.tick_params(axis="both", length=0)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(LogLocator(base=10, numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axes.grid(True, axis="x")
    axes.set_xlabel("KL divergence in nats")


def _range(histograms: list[Histogram]) -> tuple[float, float]:
    """From the first to the last bin that any row has a token in."""
    filled = [
        (low, high)
        for histogram in histograms
        for low, high, count in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False)
        if count
    ]
    return min(low for low, _ in filled), max(high for _, high in filled)
