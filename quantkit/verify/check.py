"""What a check says."""

from collections.abc import Callable
from dataclasses import dataclass

from quantkit.errors import MissingExtraError, QuantkitError


@dataclass(frozen=True)
class Check:
    """One check of one output: passed, failed or skipped, and what was seen."""

    name: str
    status: str
    detail: str


def guard(name: str, run: Callable[[], str]) -> Check:
    """Run a check: its text when it passed, the error's when it failed, skipped when an extra is missing."""
    try:
        return Check(name, "passed", run())
    except MissingExtraError as error:
        return Check(name, "skipped", str(error))
    except QuantkitError as error:
        return Check(name, "failed", str(error))
