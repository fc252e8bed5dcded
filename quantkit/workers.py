"""Threads for independent parts of one computation, so that the result does not depend on their number.

BLAS splits a product differently for each number of threads, and the sums then round differently. Here the caller
cuts the work into parts of a fixed size. BLAS computes each part with one thread. Results keep the order of parts.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import ThreadpoolController

_T = TypeVar("_T")
_R = TypeVar("_R")


class Workers:
    """`threads` threads, started on first use and kept until `close`."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._blas = ThreadpoolController()

    def map(self, work: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
        """`work` of each item, in the order of items; BLAS runs with one thread. The first error is raised."""
        with self._blas.limit(limits=1, user_api="blas"):
            if self.threads == 1 or len(items) < 2:
                return [work(item) for item in items]
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="quantkit")
            return list(self._pool.map(work, items))

    def close(self) -> None:
        """End the threads; parts that have not begun are dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parts(count: int, size: int) -> Iterator[slice]:
    """Slices of `size` items, the last one shorter, that cover `count` items."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


SERIAL = Workers(1)
"""One thread: the caller's own."""
