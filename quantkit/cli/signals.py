"""Interrupts: the first unwinds the command, so that its temporary folders are removed; the second ends it at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from quantkit.scratch import drop_all_scratch

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: the command unwinds as it does after Ctrl-C."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def interruptible() -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGHUP, except those that the caller of the process ignores."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal received
        del frame
        if received:
            drop_all_scratch()
            os._exit(128 + number)
        received = True
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    handled = [number for number in _SIGNALS if before[number] not in (signal.SIG_IGN, None)]
    for number in handled:
        signal.signal(number, handle)
    try:
        yield
    finally:
        if received:  # it can have come before a folder's own clean-up was in place
            drop_all_scratch()
        # after an interrupt the process is about to end, and a second one must not reach python's own handler
        for number in () if received else handled:
            signal.signal(number, before[number])
