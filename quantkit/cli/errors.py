"""One table from exception types to the sentence and the exit code that the user sees."""

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from quantkit.cli.output import printable
from quantkit.errors import QuantkitError, UsageError, VerificationError


class Interrupted(Exception):
    """A signal inside a command, by default that of Ctrl-C; `number` is the signal's."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number


EXIT_CODES: dict[type[BaseException], int] = {
    UsageError: 2,
    VerificationError: 3,
    QuantkitError: 1,
    KeyboardInterrupt: 130,
    MemoryError: 1,
    OSError: 1,
}

_SHOWN_OF_A_NAME = 60

INTERRUPTED = "interrupted; run the same command again to resume a conversion or a measurement"

MESSAGES: dict[type[BaseException], Callable[[BaseException], str]] = {
    QuantkitError: str,
    Interrupted: lambda _: INTERRUPTED,
    KeyboardInterrupt: lambda _: INTERRUPTED,
    MemoryError: lambda _: "out of memory; set a limit with --max-ram, or use fewer --threads",
    OSError: lambda error: _system_error(error),
}


@contextlib.contextmanager
def explain() -> Iterator[None]:
    """Turn an exception into one sentence on stderr and an exit code; `--debug` prints the traceback too."""
    try:
        yield
    except BrokenPipeError:
        # The reader of the output has closed the pipe (`| head`): no message.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        print(f"quantkit: {_sentence(error)}", file=sys.stderr)
        signal_number = getattr(error, "number", None) if isinstance(error, (Interrupted, KeyboardInterrupt)) else None
        sys.exit(_first(EXIT_CODES, error, 1) if signal_number is None else 128 + signal_number)


def _system_error(error: BaseException) -> str:
    where = getattr(error, "filename", None) or "input or output"
    reason = getattr(error, "strerror", None) or error
    if getattr(error, "errno", None) == errno.ENAMETOOLONG:
        # the whole name would fill the screen
        return f"{str(where)[:_SHOWN_OF_A_NAME]}...: {reason}; use a shorter name"
    return f"{where}: {reason}"


def _sentence(error: BaseException) -> str:
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "no further thread can be started; use fewer --threads, or raise the limits with ulimit -v or ulimit -u"
    if isinstance(error, RuntimeError) and _fills_device(error):
        return "the GPU's memory is full; end other programs on it, or add --device cpu"
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] != "quantkit":
        package = error.name.partition(".")[0]
        return f"the Python package {package} is not installed, which quantkit requires; run: pip install quantkit"
    message = _first(MESSAGES, error, None)
    if message is None:
        return printable(
            f"unexpected {type(error).__name__}: {' '.join(str(error).split())}; please report it with the traceback"
            " that --debug prints"
        )
    return printable(" ".join(message(error).split()).removesuffix("."))


def _fills_device(error: RuntimeError) -> bool:
    from quantkit.forward.devices import is_full

    return is_full(error)


def _first(table: dict[type[BaseException], Any], error: BaseException, default: Any) -> Any:
    return next((table[kind] for kind in type(error).__mro__ if kind in table), default)
