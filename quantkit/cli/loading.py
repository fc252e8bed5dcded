"""The start of a command without Python's garbage collector.

While a command imports modules and reads a vocabulary it creates a million objects and drops few. The collector would
look at all of them again and again: a fifth of the time before the first tensor.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


def begin_loading() -> None:
    """Collect no garbage until `end_loading`."""
    gc.disable()


def end_loading() -> None:
    """Collect garbage again."""
    gc.enable()


@contextmanager
def loading() -> Iterator[None]:
    """A block that creates objects which stay, and little garbage; the collector never looks at them again."""
    begin_loading()
    try:
        yield
    finally:
        _freeze_once()
        end_loading()


@cache
def _freeze_once() -> None:
    """Once in a process: what a later block finds may be garbage."""
    gc.freeze()
