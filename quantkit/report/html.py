"""A report as one HTML page that needs nothing else: no network, no script; for phones, in light and dark."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from quantkit.report.document import Model, Report, read_report
from quantkit.report.drawing import Plot
from quantkit.report.figures import significant, whole
from quantkit.report.method import machine, method
from quantkit.report.tables import Table, detail, memory, overview, quality, speed
from quantkit.report.verdict import verdict

# The page may not fetch or run anything, whatever a file's name smuggles in.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_KINDS = {"gguf": "GGUF", "hf": "Hugging Face", "awq": "AWQ", "gptq": "GPTQ"}


def html(report: Mapping[str, Any], plots: Sequence[Plot] = ()) -> str:
    """The report.json document as a page, with `plots` (from `plots.plots`) where they belong.

    Every string of the document is escaped. What was not measured has no section.
    """
    found = read_report(report)
    title = _title(found)
    body = "\n".join(part for part in _sections(found, title, plots) if part)
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
    yield f'<p class="note">{escape(method(report))}</p>' if report.texts else ""
    yield _section("Quality and size", _figures(plots, "perplexity"))
    yield _section("How far predictions moved", _figures(plots, "divergence"))
    yield _section("Each text in full" if len(report.texts) > 1 else "The rest of the figures", _texts(report))
    table = memory(report)
    yield _section("Memory", _figures(plots, "memory") + (_titled("", table, report) if table.rows else ""))
    table = speed(report)
    yield _section("Speed", _table(table, report) + _SPEED_NOTE if table.rows else "")
    yield _section("Where the weights changed", _figures(plots, "tensors"))
    rows = machine(report)
    yield _section("Machine and settings", _list(rows) if rows else "")
    yield _section("Files", _files(report))


_SPEED_NOTE = (
    '<p class="note">As llama-bench defines it: tokens a second, mean ± standard error of the repetitions.</p>'
)


def _head(report: Report, title: str) -> str:
    sentences = verdict(report)
    parts = [f"<header>\n<h1>{escape(title)}</h1>"]
    if sentences:
        parts.append(f'<p class="lead">{escape(sentences[0])}</p>')
    if report.flags:
        flags = "".join(f"<p><b>Flagged:</b> {escape(flag)}</p>" for flag in report.flags)
        parts.append(f'<div class="flags">{flags}</div>')
    if sentences[1:]:
        items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences[1:])
        parts.append(f'<ul class="verdict">{items}</ul>')
    return "\n".join([*parts, "</header>"])


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def _figures(plots: Sequence[Plot], group: str) -> str:
    found = [
        f'<figure id="{escape(plot.name)}">\n<h3>{escape(plot.title)}</h3>\n{plot.inline}\n'
        f"<figcaption>{escape(plot.caption)}</figcaption>\n</figure>"
        for plot in plots
        if plot.group == group
    ]
    return f'<div class="plots">\n{"".join(found)}\n</div>\n' if found else ""


def _texts(report: Report) -> str:
    parts = []
    for text in report.texts:
        tables = [detail(report, text)]
        if len(report.texts) > 1:
            tables.insert(0, quality(report, text))
        tables = [table for table in tables if table.rows and len(table.headers) > 1]
        for number, table in enumerate(tables):
            parts.append(_titled("" if number else text.name, table, report))
    if parts:
        parts.append(
            '<p class="note">KL divergence in nats a token: half, 90% and 99.9% of the tokens are below the median and'
            " the percentiles. The probability of the next token is that of the one the text goes on with: its mean"
            " change, and how large a change is (root mean square), in points of a percent.</p>"
        )
    return "\n".join(parts)


def _titled(title: str, table: Table, report: Report) -> str:
    heading = f'<h3 class="table">{escape(title)}</h3>' if title else '<div style="height:14px"></div>'
    return f"{heading}\n{_table(table, report)}\n"


def _table(table: Table, report: Report, *, cards: bool = False) -> str:
    reference = report.reference
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in table.headers)
    lines = []
    for row in table.rows:
        mark = ' class="reference"' if reference and row[0] == f"{reference.label} (reference)" else ""
        cells = "".join(
            f'<td data-label="{escape(header)}">{escape(cell)}</td>'
            for header, cell in zip(table.headers[1:], row[1:], strict=True)
        )
        lines.append(f'<tr{mark}><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    body = "\n".join(lines)
    return (
        f'<div class="box{" cards" if cards else ""}" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n"
    )


def _list(rows: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows) + "</dl>"


def _files(report: Report) -> str:
    boxes = [_box(model.label, _model_facts(model)) for model in report.models]
    for text in report.texts:
        facts = [
            ("tokens", whole(text.tokens) if text.tokens is not None else ""),
            ("windows measured", whole(text.chunks) if text.chunks is not None else ""),
            ("tokens scored", whole(text.scored_tokens) if text.scored_tokens is not None else ""),
            ("sha256", text.sha256),
        ]
        boxes.append(_box(text.name, facts))
    return f'<div class="files">{"".join(boxes)}</div>' if boxes else ""


def _model_facts(model: Model) -> list[tuple[str, str]]:
    return [
        ("name", model.name if model.name != model.label else ""),
        ("file", model.path),
        ("format", _KINDS.get(model.kind, model.kind)),
        ("measured with", model.engine),
        ("bytes", f"{model.bytes:,.0f}" if model.bytes is not None else ""),
        ("parameters", whole(model.parameters) if model.parameters is not None else ""),
        ("bits per weight", significant(model.bits_per_weight, 5) if model.bits_per_weight is not None else ""),
    ]


def _box(title: str, facts: Sequence[tuple[str, str]]) -> str:
    return f"<div><h3>{escape(title)}</h3>{_list([(name, value) for name, value in facts if value])}</div>"
