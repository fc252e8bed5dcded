"""Memory by device and kind, for each number of offloaded layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quantkit.measurement.document import Memory, Model, Report
from quantkit.report.drawing import INK, KINDS, PAGE, Heading, Plot, distinct, draw, short
from quantkit.report.figures import size, tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMES = {"weights": "weights", "kv": "KV cache", "compute": "compute", "other": "other"}
_BAR, _BETWEEN_LOADS = 21, 8
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))


@dataclass(frozen=True)
class _Bar:
    """One device of one load."""

    label: str
    parts: Mapping[str, float]
    driver: float | None
    peak: float | None
    load: int

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def memory(report: Report) -> list[Plot]:
    """A plot for each model whose memory was measured, all to one scale; one plot of all where each was loaded once."""
    measured = [(model, bars) for model in report.models if (bars := _bars(model))]
    largest = max((_extent(row) for model, _ in measured for row in model.memory), default=1.0)
    if len(measured) > 1 and all(len(model.memory) == 1 for model, _ in measured):
        labels = distinct([model.label for model, _ in measured], 14)
        bars = [
            replace(bar, label=f"{labels[load]} · {bar.label}", load=load)
            for load, (_, its) in enumerate(measured)
            for bar in its
        ]
        return [_plot("memory", "Memory of each model", bars, largest)]
    return [
        _plot("memory" if number == 1 else f"memory-{number}", f"Memory of {short(model.label, 40)}", bars, largest)
        for number, (model, bars) in enumerate(measured, 1)
    ]


def _plot(name: str, title: str, bars: Sequence[_Bar], largest: float) -> Plot:
    caption = (
        "A bar for each device, by the number of layers on the GPU; their sums on the right. All models have one scale."
    )
    if any(bar.driver is not None for bar in bars):
        caption += " The upright line is the memory that the GPU's driver reports for the process."
    if any(bar.peak is not None for bar in bars):
        caption += (
            " The diamond is the process's peak (PSS): it has the runtime itself in it, but not what was reserved and"
            " never touched."
        )
    height = 96 + _BAR * len(bars) + _BETWEEN_LOADS * bars[-1].load
    return draw(Heading(name, "memory", title, caption), height, lambda figure: _fill(figure, bars, largest))


def _bars(model: Model) -> list[_Bar]:
    contexts = {row.n_ctx for row in model.memory}
    bars: list[_Bar] = []
    for load, row in enumerate(model.memory):
        context = f", {row.n_ctx} ctx" if len(contexts) > 1 and row.n_ctx else ""
        opening = f"{short(row.gpu_layers, 9)}{context}"
        driver = dict(row.driver)
        for number, device in enumerate(row.devices):
            peak = row.peak_pss if number == 0 else None
            label = f"{opening} · {short(device.name or '?', 16)}"
            bars.append(_Bar(label, device.parts, driver.pop(device.name, None), peak, load))
        for name, used in driver.items():
            bars.append(_Bar(f"{opening} · {short(name or '?', 16)}", {}, used, None, load))
    return bars


def _extent(row: Memory) -> float:
    return max(1.0, row.peak_pss or 0.0, *(device.total for device in row.devices), *(used for _, used in row.driver))


def _fill(figure: "Figure", bars: Sequence[_Bar], largest: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes = figure.add_subplot()
    unit, unit_name = next((scale, name) for scale, name in _UNITS if largest >= scale or scale == 1.0)
    places = [-(number + bar.load * _BETWEEN_LOADS / _BAR) for number, bar in enumerate(bars)]
    named: set[str] = set()
    for place, bar in zip(places, bars, strict=True):
        _draw_bar(axes, bar, place, unit, named)
    axes.set_xlim(0, largest / unit * 1.03)
    axes.set_ylim(places[-1] - 0.6, 0.6)
    axes.set_yticks(places, [bar.label for bar in bars])
    axes.tick_params(length=0)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axes.grid(True, axis="x")
    axes.set_xlabel(unit_name)
    _add_legend(figure, axes)


def _draw_bar(axes: "Axes", bar: _Bar, place: float, unit: float, named: set[str]) -> None:
    """One bar with its marks and its total. Parts and marks that are not in `named` get an entry of the legend."""
    start = 0.0
    for kind, used in bar.parts.items():
        if used <= 0:
            continue
        label = "" if kind in named else _NAMES[kind]
        named.add(kind)
        axes.barh(place, used / unit, left=start / unit, height=0.72, color=KINDS[kind], label=label, linewidth=0)
        start += used
    marks = [(bar.driver, "|", 13, "driver's figure"), (bar.peak, "d", 5.5, "peak PSS")]
    for value, marker, points, label in marks:
        if value is not None:
            shown = "" if label in named else label
            named.add(label)
            line = marker == "|"
            axes.plot(
                [value / unit],
                [place],
                marker,
                color=INK,
                markersize=points,
                markeredgecolor=INK if line else PAGE,
                markeredgewidth=2 if line else 0.8,
                linestyle="none",
                label=shown,
                zorder=5,
            )
    axes.annotate(
        size(bar.total) if bar.parts else "",
        (1, place),
        xycoords=("axes fraction", "data"),
        xytext=(50, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=10,
        color=INK,
    )


def _add_legend(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    order = [*_NAMES.values(), "peak PSS", "driver's figure"]
    entries = sorted(zip(labels, handles, strict=True), key=lambda entry: order.index(entry[0]))
    figure.legend(
        [handle for _, handle in entries],
        [label for label, _ in entries],
        loc="outside lower center",
        ncols=3,
        handlelength=0.9,
        columnspacing=1.2,
        handletextpad=0.5,
    )
