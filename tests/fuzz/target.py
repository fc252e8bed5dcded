"""A kind of file to damage, and what reads it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import QuantkitError
from tests.helpers.command import quantkit_here


@dataclass(frozen=True)
class Target:
    """`file` is damaged in its first `region` bytes; `read` returns what a user sees, or raises QuantkitError."""

    file: Path
    read: Callable[[], str]
    region: int | None = None


def command(*words: str | Path) -> Callable[[], str]:
    """A command, run to its end; what it prints on stderr. The faults of its own are told apart here."""

    def run() -> str:
        answer = quantkit_here(*words)
        assert answer.code in (0, 1, 2, 3), answer
        assert "Traceback" not in answer.stderr and "quantkit: unexpected" not in answer.stderr, answer.stderr
        assert "out of memory" not in answer.stderr, answer.stderr
        shown = (answer.stdout + answer.stderr).replace("\n", "")
        assert shown.isprintable(), ascii(next(c for c in shown if not c.isprintable()))
        if answer.code:
            raise QuantkitError(answer.stderr)
        return answer.stderr

    return run
