"""The only module that writes to the terminal: results to stdout, progress and warnings to stderr."""

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from quantkit.cli.options import Format
from quantkit.progress import SILENT, Progress

_LINE_EVERY_SECONDS = 15.0
_NAME_WIDTH = 10


def printable(text: str) -> str:
    """`text` with control characters and lone surrogates escaped, so that no input controls the terminal.

    Newlines stay. `Out` prints all text like this; only text that takes another way needs a call.
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _ascii_where_unprintable(document: str) -> str:
    """A JSON document whose characters that are not printable are `\\uXXXX`: it has the same content."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in document)


class Out:
    """The output of one command, in the format of --format."""

    def __init__(self, format_: Format) -> None:
        from rich.console import Console  # here, so that --help does not load it

        self.format = format_
        self.stdout = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        self.stderr = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())

    def note(self, text: str, style: str = "") -> None:
        """Print one line about the work on stderr; nothing when quiet."""
        if self.format != Format.quiet:
            self.stderr.print(printable(text), style=style, markup=False)

    def warn(self, text: str) -> None:
        """Print a warning on stderr, in every format."""
        self.stderr.print(printable(f"warning: {text}"), style="yellow", markup=False)

    def document(self, value: Mapping[str, Any]) -> None:
        """Print the whole result as one JSON document; only with --format json."""
        if self.format == Format.json:
            print(_ascii_where_unprintable(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)))

    def table(self, headers: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], title: str = "") -> None:
        """Print a table for people; `headers` are (text, justification)."""
        if self.format != Format.human:
            return
        from rich.table import Table
        from rich.text import Text

        heading = Text(printable(title)) if title else None
        table = Table(title=heading, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for number, (text, justify) in enumerate(headers):
            # the first column names the row: it stays readable on a narrow terminal
            width = min(_NAME_WIDTH, max(map(len, [text, *(row[0] for row in rows)]))) if number == 0 else None
            table.add_column(
                text,
                justify=justify,  # type: ignore[arg-type]
                header_style="bold",
                overflow="fold",
                no_wrap=justify == "right",
                min_width=width,
            )
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        self.stdout.print(table)

    def say(self, text: str) -> None:
        """Print one line of the result for people, on stdout."""
        if self.format == Format.human:
            self.stdout.print(printable(text), markup=False)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """What long work reports to: a bar on a terminal, a line every 15 seconds when piped, nothing when quiet."""
        if self.format == Format.quiet:
            yield SILENT
        elif self.stderr.is_terminal:
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=28),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("eta"),
                TimeRemainingColumn(),
            )
            with Bars(*columns, console=self.stderr, transient=True) as bars:
                yield _Bar(bars)
        else:
            yield _Lines(self)


class _Bar:
    """One bar, started over by every stage."""

    def __init__(self, bars: Any) -> None:
        self._bars, self._stage = bars, ""
        self._task = bars.add_task("", total=None)

    def start(self, stage: str, total: int = 0) -> None:
        self._stage = stage
        self._bars.reset(self._task, total=total or None, description=f"{printable(stage):<40.40}")

    def advance(self, amount: int = 1, item: str = "") -> None:
        self._bars.update(self._task, advance=amount, description=f"{printable(f'{self._stage} {item}'):<40.40}")


class _Lines:
    """A line every 15 seconds, with the time left at the pace of this run."""

    def __init__(self, out: Out) -> None:
        self._out, self._lock = out, threading.Lock()
        self._last = time.monotonic()
        self._begin("", 0)

    def _begin(self, stage: str, total: int) -> None:
        self._stage, self._total, self._done = stage, total, 0
        # A resumed run reports finished work at once: the pace is counted from the first report on.
        self._first: tuple[float, int] | None = None

    def start(self, stage: str, total: int = 0) -> None:
        with self._lock:
            self._begin(stage, total)
            self._line(stage)

    def advance(self, amount: int = 1, item: str = "") -> None:
        with self._lock:
            self._done += amount
            if self._first is None:
                self._first = time.monotonic(), self._done
            self._line(f"{self._stage} {item}")

    def _line(self, text: str) -> None:
        now = time.monotonic()
        if now - self._last < _LINE_EVERY_SECONDS:
            return
        self._last = now
        began, first = self._first or (now, self._done)
        if self._done >= self._total or self._done <= first:
            self._out.note(text)
            return
        seconds_left = (now - began) * (self._total - self._done) / (self._done - first)
        self._out.note(f"{text} {100 * self._done / self._total:.0f}%, about {seconds_left:.0f} s left")


def human_count(count: float) -> str:
    """134.5M, 7.24B."""
    for unit in ("", "K", "M", "B"):
        if count < 999.5:
            return f"{count:.4g}{unit}"
        count /= 1000
    return f"{count:.4g}T"
