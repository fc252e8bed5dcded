"""A report as Markdown for a model card: tables, and one line on the method under them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.measurement.reading import read_report
from quantkit.report.method import method
from quantkit.report.tables import Table, memory, overview, pictures, quality, speed

# What Markdown or the HTML inside it would take for markup; a name from a file is shown as it is.
_MARKUP = re.compile(r"([\\`*\[\]<>|~$&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def markdown(report: Mapping[str, Any]) -> str:
    """The report.json document as Markdown.

    With several texts, first one table with the texts side by side, then one for each. Memory and speed follow where
    they were measured. Never raises for what the document lacks.
    """
    typed = read_report(report)
    blocks = [_table(overview(typed))] if typed.models else ["Nothing was measured."]
    if len(typed.texts) > 1:
        for text in typed.texts:
            blocks += [f"**{_plain(text.name)}**", _table(quality(typed, text))]
    if typed.texts:
        blocks.append(_plain(method(typed)))
    for table in (pictures(typed), memory(typed), speed(typed)):
        if table.rows:
            blocks += [f"**{table.title}**", _table(table)]
    blocks += [f"Flagged: {_plain(flag)}" for flag in typed.flags]
    return "\n\n".join(blocks) + "\n"


def _table(table: Table) -> str:
    groups = table.groups or [""] * len(table.headers)
    headers = [f"{header}, {group}" if group else header for header, group in zip(table.headers, groups, strict=True)]
    lines = [_row(headers), "|---|" + "---:|" * (len(table.headers) - 1)]
    return "\n".join([*lines, *(_row(row) for row in table.rows)])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell) for cell in cells) + " |"


def _plain(text: str) -> str:
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))
