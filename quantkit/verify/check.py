"""The result of a check, and of all checks of one output."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from quantkit.errors import MissingExtraError, PassingError, QuantkitError, ReadError, passing_fault
from quantkit.outputs.plan import OutputPlan

_SAMPLES, _SAMPLE_ELEMENTS = 4, 1 << 14


@dataclass(frozen=True)
class Check:
    """One check of one output: `status` is "passed", "failed" or "skipped", `detail` the figures or the reason."""

    name: str
    status: str
    detail: str


@dataclass(frozen=True)
class Verified:
    """An output and its checks. `sha256` by file name; `errors`: the relative error of each tensor or linear.

    The error of a GGUF tensor is the RMS error on sampled rows, divided by the RMS of the source. The error of an AWQ
    or GPTQ linear is the squared error of its outputs on the calibration text over their squares.
    """

    output: OutputPlan
    checks: tuple[Check, ...]
    sha256: Mapping[str, str]
    errors: Mapping[str, float] = field(default_factory=dict)
    logit_correlation: float | None = None

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.status == "failed")


def sampled_rows(n_rows: int, n_columns: int) -> list[tuple[int, int]]:
    """The rows (start, stop) of a matrix that checks compare with the source's: a few ranges spread over it."""
    step = max(1, _SAMPLE_ELEMENTS // n_columns)
    last = max(0, n_rows - step)
    starts = sorted({*(int(index * (last / (_SAMPLES - 1))) for index in range(_SAMPLES - 1)), last})
    return [(start, min(start + step, n_rows)) for start in starts]


def guard(name: str, run: Callable[[], str]) -> Check:
    """Run a check: "passed" with the text it returns, "failed" with its error, "skipped" without an optional extra.

    Raises:
        PassingError, ReadError: the machine or the source failed; the output may be sound.
    """
    try:
        return Check(name, "passed", run())
    except MissingExtraError as error:
        return Check(name, "skipped", str(error))
    except (QuantkitError, OSError, MemoryError) as error:
        raise_if_passing(name, error)
        if isinstance(error, OSError):
            return Check(name, "failed", f"{error.filename or 'a file'}: {error.strerror or error}")
        return Check(name, "failed", str(error))


def raise_if_passing(name: str, error: BaseException) -> None:
    """Raise PassingError if a fault of the machine ended the check `name`; the output may be sound.

    An error of reading the source (ReadError) is raised unchanged.
    """
    if isinstance(error, PassingError | ReadError):
        raise error
    fault = passing_fault(error)
    if fault is not None:
        reason = "too little memory" if isinstance(fault, MemoryError) else fault.strerror or str(fault)
        raise PassingError(
            f"the check of {name} could not be made ({reason}); the finished work is kept, run the same command again"
        ) from error
