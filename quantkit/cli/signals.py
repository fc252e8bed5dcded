"""Interrupts: the first unwinds the command, so that its temporary folders are removed; the second ends it at once."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from quantkit.cli.errors import INTERRUPTED
from quantkit.scratch import drop_all_scratch
from quantkit.system.processes import end_children

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_AGAIN_SECONDS = 0.02
_CURSOR_ON_A_NEW_LINE = "\n\x1b[?25h"
"""For a terminal on which a progress bar has hidden the cursor."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: the command unwinds as it does after Ctrl-C."""

    def __init__(self, number: int) -> None:
        self.number = number


@dataclass
class Received:
    """The signal that interrupts the command.

    Attributes:
        number: the signal's number; None until one comes.
        unwound: the command has ended, and its caller prints the sentence.
    """

    number: int | None = None
    unwound: bool = False


@contextmanager
def interruptible() -> Iterator[Received]:
    """Handle SIGINT, SIGTERM and SIGHUP, except those that the caller of the process ignores."""
    received = Received()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        if received.number is not None:
            end_children()
            drop_all_scratch()
            if not received.unwound:
                _print_interrupted()
            os._exit(128 + number)
        received.number = number
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    def again(unraisable: Any) -> None:
        """The interrupt came in a destructor or a callback of C code, which drops it: send the signal once more."""
        if received.number is None or not isinstance(unraisable.exc_value, KeyboardInterrupt):
            dropped(unraisable)
            return
        number, received.number = received.number, None
        later.append(threading.Timer(_AGAIN_SECONDS, _send_to_main_thread, (number,)))
        later[-1].daemon = True
        later[-1].start()

    later: list[threading.Timer] = []
    dropped, sys.unraisablehook = sys.unraisablehook, again
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    handled = [number for number in _SIGNALS if before[number] not in (signal.SIG_IGN, None)]
    for number in handled:
        signal.signal(number, handle)
    try:
        yield received
    finally:
        received.unwound = True
        sys.unraisablehook = dropped
        for timer in later:
            timer.cancel()
        if received.number is not None:  # it can have come before a folder's own clean-up was in place
            drop_all_scratch()
        # after an interrupt the process is about to end, and a second one must not reach python's own handler
        for number in () if received.number is not None else handled:
            signal.signal(number, before[number])


def _print_interrupted() -> None:
    """Print the sentence of an interrupt past Python's buffers, which a signal's handler must not use."""
    with suppress(OSError):
        line = f"quantkit: {INTERRUPTED}\n"
        os.write(2, ((_CURSOR_ON_A_NEW_LINE if os.isatty(2) else "") + line).encode())


def _send_to_main_thread(number: int) -> None:
    """Interrupt a system call that the main thread waits in, too."""
    ident = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and ident is not None:
        signal.pthread_kill(ident, number)
    else:
        signal.raise_signal(number)
