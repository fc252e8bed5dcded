"""All plots of a report."""

from collections.abc import Mapping
from typing import Any

from quantkit.measurement.document import Report
from quantkit.measurement.reading import read_report
from quantkit.report.drawing import Plot, check_extra
from quantkit.report.plot_divergence import divergence
from quantkit.report.plot_memory import memory
from quantkit.report.plot_perplexity import perplexity
from quantkit.report.plot_tensors import tensor_errors


def plots(report: Mapping[str, Any]) -> list[Plot]:
    """Every plot that the report.json document has the figures for, in the page's order.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    check_extra()
    return plots_of(read_report(report))


def plots_of(report: Report) -> list[Plot]:
    """All plots for which the report has figures."""
    drawn: list[Plot | None] = []
    for draw in (perplexity, divergence):
        drawn += [draw(report, text, number) for number, text in enumerate(report.texts, 1)]
    return [plot for plot in (*drawn, *memory(report), *tensor_errors(report)) if plot is not None]
