"""Progress of long work: a bar on a terminal, a line now and then when piped, nothing when quiet."""

import io
import re
import time

import pytest
from rich.console import Console

from quantkit.cli import output
from quantkit.cli.options import Format
from quantkit.cli.output import Out
from quantkit.progress import SILENT


def out(format_: Format = Format.human, *, terminal: bool = False) -> tuple[Out, io.StringIO]:
    """An output whose stderr is text in memory."""
    made, text = Out(format_), io.StringIO()
    made.stderr = Console(file=text, force_terminal=terminal, width=100, highlight=False, soft_wrap=True)
    return made, text


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that lines go by; a test moves it."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_quiet_shows_nothing() -> None:
    made, text = out(Format.quiet)
    with made.progress() as progress:
        assert progress is SILENT
        progress.start("converting", 10)
        progress.advance(10)
    assert text.getvalue() == ""


def test_lines_come_every_15_seconds_with_the_time_left(clock: list[float]) -> None:
    made, text = out()
    with made.progress() as progress:
        progress.start("converting", 100)
        progress.advance(10, "blk.0")
        clock[0] += 10
        progress.advance(10, "blk.1")
        assert text.getvalue() == ""
        clock[0] += 10
        progress.advance(20, "blk.2")
    # 30 units in 20 s since the first report; 60 are left
    assert text.getvalue() == "converting blk.2 40%, about 40 s left\n"


def test_what_a_resumed_run_finds_done_does_not_count_for_the_pace(clock: list[float]) -> None:
    made, text = out()
    with made.progress() as progress:
        progress.start("converting", 100)
        progress.advance(90, "resumed")
        clock[0] += 20
        progress.advance(5, "blk.9")
    assert text.getvalue() == "converting blk.9 95%, about 20 s left\n"


def test_a_stage_that_cannot_be_counted_is_named(clock: list[float]) -> None:
    made, text = out()
    with made.progress() as progress:
        clock[0] += 20
        progress.start("checking")
    assert text.getvalue() == "checking\n"


def test_a_terminal_shows_a_bar_that_each_stage_starts_over() -> None:
    made, text = out(terminal=True)
    with made.progress() as progress:
        progress.start("converting", 4)
        progress.advance(4, "blk.0")
        progress.start("checking", 2)
        progress.advance(1, "q4_0")
        assert isinstance(progress, output._Bar)
        (task,) = progress._bars.tasks
        assert (task.completed, task.total) == (1, 2)
        progress._bars.refresh()
    assert re.search(r"checking q4_0 .* 50%", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue()))
