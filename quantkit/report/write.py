"""Writes a report: report.json, report.md, report.html and plots/, each file atomically."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import MissingExtraError
from quantkit.files import make_folder, write_atomically
from quantkit.report.html import html
from quantkit.report.markdown import markdown
from quantkit.report.plots import plots

_PLOT = re.compile(r"(perplexity-size|kl-divergence|memory|tensor-errors)(-\d+)?\.(svg|png)")


def write_report(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the report.json document and the pages and plots of it into `folder`; returns the files, in that order.

    report.json and report.md come first, so they exist even if plots cannot be drawn. The files replace those of an
    earlier report; its plots and page are removed if this report has none, because they show other figures.

    Raises:
        MissingExtraError: matplotlib is not installed; report.json and report.md are written.
        OutputError: the folder cannot be written to.
    """
    written = [
        _write(folder / "report.json", _json(report)),
        _write(folder / "report.md", markdown(report).encode()),
    ]
    try:
        drawn = plots(report)
    except MissingExtraError:
        _forget(folder, ())
        (folder / "report.html").unlink(missing_ok=True)
        raise
    _forget(folder, [plot.name for plot in drawn])
    for plot in drawn:
        written.append(_write(folder / "plots" / f"{plot.name}.svg", plot.svg.encode()))
        written.append(_write(folder / "plots" / f"{plot.name}.png", plot.png))
    return [*written, _write(folder / "report.html", html(report, drawn).encode())]


def _forget(folder: Path, names: Collection[str]) -> None:
    """Remove the plots of an earlier report that are not among `names`."""
    for path in (folder / "plots").glob("*.*"):
        if _PLOT.fullmatch(path.name) and path.stem not in names:
            path.unlink(missing_ok=True)


def _json(report: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(report, ensure_ascii=False, indent=1) + "\n").encode()
    except UnicodeEncodeError:  # half a character in a file's name
        return (json.dumps(report, indent=1) + "\n").encode()


def _write(path: Path, content: bytes) -> Path:
    make_folder(path.parent)
    write_atomically(path, content)
    return path
