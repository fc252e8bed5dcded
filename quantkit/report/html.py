"""A report as one self-contained HTML page: no network, no script; for phones, in light and dark."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from itertools import groupby
from typing import Any

from quantkit.measurement.document import Report
from quantkit.measurement.reading import read_report
from quantkit.report.drawing import Plot
from quantkit.report.figures import ABSENT
from quantkit.report.method import machine, method
from quantkit.report.tables import Table, detail, files, memory, overview, pictures, quality, speed, texts
from quantkit.report.verdict import verdict

# The page must not fetch or run anything, even if a file's name contains markup.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_LONG = 28


def html(report: Mapping[str, Any], plots: Sequence[Plot] = ()) -> str:
    """The report.json document as a page, with `plots` (from `plots.plots`) where they belong.

    Every string of the document is escaped. What was not measured has no section.
    """
    typed = read_report(report)
    title = _title(typed)
    body = "\n".join(part for part in _sections(typed, title, plots) if part)
    style = resources.files("quantkit.report").joinpath("page.css").read_text("utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _title(report: Report) -> str:
    reference = report.reference
    return f"What quantization cost {reference.name}" if reference else "What quantization cost"


def _sections(report: Report, title: str, plots: Sequence[Plot]) -> Iterable[str]:
    yield _head(report, title)
    if report.models:
        yield _table(overview(report), report, cards=True)
    yield f'<p class="note">{_text(method(report))}</p>' if report.texts else ""
    if len(report.texts) > 1:
        yield _section("Quality and size", _figures(plots, "perplexity"))
        yield _section("How far predictions moved", _figures(plots, "divergence"))
    else:
        yield _section("Quality and size", _figures(plots, "perplexity", "divergence"))
    yield _section("Each text in full" if len(report.texts) > 1 else "The rest of the figures", _texts(report))
    table = pictures(report)
    yield _section(table.title, _table(table, report) + _PICTURES_NOTE if table.rows else "")
    table = memory(report)
    yield _section("Memory", _figures(plots, "memory") + _folded("All figures of memory", table, report))
    table = speed(report)
    yield _section("Speed", _table(table, report) + _SPEED_NOTE if table.rows else "")
    yield _section("Where the weights changed", _figures(plots, "tensors"))
    rows = machine(report)
    yield _section("Machine and settings", _list(rows) if rows else "")
    yield _section("Files", _titled("", files(report), report) + _titled("", texts(report), report))


_TEXTS_NOTE = (
    '<p class="note">KL divergence in nats a token: half, 90% and 99.9% of the tokens are below the median and the'
    " percentiles. The next token's probability is that of the token the text goes on with: its mean change, and how"
    " large a change is (root mean square), in points of a percent.</p>"
)
_PICTURES_NOTE = (
    '<p class="note">The reference answers a question about each picture. The same answers are those whose tokens are'
    " all the model's most likely ones. KL divergence in nats a token of the answers.</p>"
)
_SPEED_NOTE = (
    '<p class="note">As llama-bench defines it: tokens a second, mean ± standard deviation of the repetitions.</p>'
)


def _head(report: Report, title: str) -> str:
    sentences = verdict(report)
    parts = [f"<header>\n<h1>{escape(title)}</h1>"]
    if sentences:
        parts.append(f'<p class="lead">{_text(sentences[0])}</p>')
    if report.flags:
        flags = "".join(f"<p><b>Flagged:</b> {escape(flag)}</p>" for flag in report.flags)
        parts.append(f'<div class="flags">{flags}</div>')
    if sentences[1:]:
        items = "".join(f"<li>{_text(sentence)}</li>" for sentence in sentences[1:])
        parts.append(f'<ul class="verdict">{items}</ul>')
    return "\n".join([*parts, "</header>"])


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def _figures(plots: Sequence[Plot], *groups: str) -> str:
    """The plots of some groups; a shared caption is above them."""
    group_plots = [plot for plot in plots if plot.group in groups]
    if not group_plots:
        return ""
    shared = len(group_plots) > 1 and len({plot.caption for plot in group_plots}) == 1
    figures = []
    for plot in group_plots:
        caption = " ".join(part for part in ("" if shared else plot.caption, plot.note) if part)
        figcaption = f"\n<figcaption>{_text(caption)}</figcaption>" if caption else ""
        figures.append(
            f'<figure id="{escape(plot.name)}">\n<h3>{escape(plot.title)}</h3>\n{plot.inline}{figcaption}\n</figure>'
        )
    note = f'<p class="note">{_text(group_plots[0].caption)}</p>\n' if shared else ""
    return note + '<div class="plots">\n' + "\n".join(figures) + "\n</div>\n"


def _texts(report: Report) -> str:
    parts = []
    for text in report.texts:
        if len(report.texts) > 1:
            parts.append(_titled(text.name, quality(report, text), report))
        parts.append(_titled("", detail(report, text), report))
    tables = "\n".join(part for part in parts if part)
    return tables + _TEXTS_NOTE if tables else ""


def _titled(title: str, table: Table, report: Report) -> str:
    if not table.rows or len(table.headers) < 2:
        return ""
    heading = f'<h3 class="table">{escape(title)}</h3>\n' if title else ""
    return heading + _table(table, report)


def _folded(title: str, table: Table, report: Report) -> str:
    """A collapsed table with the figures of the plots above it."""
    if not table.rows:
        return ""
    return f"<details>\n<summary>{escape(title)}</summary>\n{_table(table, report)}</details>\n"


def _table(table: Table, report: Report, *, cards: bool = False) -> str:
    """`cards`: on a phone each row becomes a card."""
    reference = report.reference
    rows = []
    for row in table.rows:
        mark = reference is not None and row[0] == f"{reference.label} (reference)"
        cells = []
        for number, (header, cell) in enumerate(zip(table.headers[1:], row[1:], strict=True), 1):
            group = table.groups[number] if table.groups else ""
            first = _begins(table.groups, number)
            if first:
                cells.append(f'<td class="heading">{escape(group)}</td>')
            cells.append(f'<td data-label="{escape(header)}"{_classes(first, cell)}>{_text(cell)}</td>')
        rows.append(
            f'<tr{" class=reference" if mark else ""}><th scope="row"{_classes(False, row[0])}>{_text(row[0])}</th>'
            f"{''.join(cells)}</tr>"
        )
    body = "\n".join(rows)
    return (
        f'<div class="box{" cards" if cards else ""}" tabindex="0"><table>\n<thead>{_headings(table)}</thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n"
    )


def _headings(table: Table) -> str:
    lines = ""
    if table.groups:
        spans = [(group, len(list(group_columns))) for group, group_columns in groupby(table.groups)]
        lines = "".join(
            f'<th colspan="{span}"{" class=group" if group else ""}>{escape(group)}</th>' for group, span in spans
        )
        lines = f"<tr>{lines}</tr>"
    heads = "".join(
        f'<th scope="col"{_classes(_begins(table.groups, number), "")}>{escape(header)}</th>'
        for number, header in enumerate(table.headers)
    )
    return f"{lines}<tr>{heads}</tr>"


def _begins(groups: Sequence[str], number: int) -> bool:
    return bool(groups) and bool(groups[number]) and groups[number] != groups[number - 1]


def _classes(begins: bool, cell: str) -> str:
    """A column that begins a group has a line; long cells (paths, names) may break anywhere."""
    applies = {"begins": begins, "long": len(cell) > _LONG, "absent": cell == ABSENT}
    names = [name for name, applied in applies.items() if applied]
    return f' class="{" ".join(names)}"' if names else ""


def _text(text: str) -> str:
    """Escaped, a figure kept on one line with its error."""
    return escape(text).replace(" ± ", "\u00a0±\u00a0")


def _list(rows: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows) + "</dl>"
