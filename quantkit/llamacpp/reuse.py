"""Child processes that answer several requests: starting one takes 0.2 seconds of CPU, half a small model's check."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar


class Child(Protocol):
    """A process that can be stopped."""

    @property
    def alive(self) -> bool:
        """Whether the process is running."""

    def close(self) -> None:
        """Stop the process."""


_C = TypeVar("_C", bound=Child)


class IdleChildren(Generic[_C]):
    """Children between two requests. Any number of threads may take and return them; each has a child to itself."""

    def __init__(self) -> None:
        self._idle: list[_C] = []
        self._users = 0
        self._lock = threading.Lock()

    @contextmanager
    def reused(self) -> Iterator[None]:
        """Within this block returned children wait for the next request; the end of the outermost block stops them."""
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                ended = [] if self._users else self._idle
                if not self._users:
                    self._idle = []
            for child in ended:
                child.close()

    def take(self) -> _C | None:
        """A running child that is idle; None if there is none."""
        with self._lock:
            while self._idle:
                child = self._idle.pop()
                if child.alive:
                    return child
                child.close()
        return None

    def give_back(self, child: _C) -> None:
        """Keep a child for the next request; outside a block it is stopped."""
        with self._lock:
            if self._users:
                self._idle.append(child)
                return
        child.close()
