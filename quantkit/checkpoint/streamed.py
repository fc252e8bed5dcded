"""The weight files of a repository, read by range requests while a conversion needs them; nothing goes to the disk.

Bytes come in segments of a tensor. The latest segments stay in memory, up to a bound, so bytes that are read again soon
are not fetched again. Bytes that are read again later (see `keep`) are copied to a small scratch file. Bytes that are
fetched twice all the same are counted.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.kept_rows import KeptRows, Span
from quantkit.checkpoint.ranges import Ranges
from quantkit.checkpoint.repository import Listing, Repository
from quantkit.checkpoint.tensor import TensorInfo
from quantkit.checkpoint.traffic import Traffic
from quantkit.errors import CheckpointError, ReadError
from quantkit.machine import memory_limit

SEGMENT = 8 << 20
"""Bytes of one request."""
_CONNECTIONS = 4
_AHEAD = 32 << 20
"""Bytes that are fetched before they are asked for."""
_LEAST_MEMORY = 128 << 20
_LONGEST_KEPT, _MOST_KEPT = 1 << 20, 1 << 30
_LAYER = re.compile(r"\.(\d+)\.")

_Key = tuple[str, int]
"""A segment: its file, and its first byte there."""


class StreamedWeights:
    """Reads tensors of a repository's weight files by ranges; many threads can read at once.

    `memory` (bytes): what the latest segments take at most, beside those on their way.
    """

    def __init__(
        self, repository: Repository, listing: Listing, ranges: Ranges, tensors: Iterable[TensorInfo], memory: int = 0
    ) -> None:
        self._repository, self._listing, self._ranges = repository, listing, ranges
        tensors = list(tensors)
        self.memory = memory or memory_of(tensors)
        self.total = sum(tensor.nbytes for tensor in tensors)
        self._segments: OrderedDict[_Key, Future[bytes]] = OrderedDict()
        self._sizes: dict[_Key, int] = {}
        self._fetched: set[_Key] = set()
        self._again = self._held = 0
        self._order: dict[tuple[str, int], int] = {}
        self._expected: list[TensorInfo] = []
        self._kept: KeptRows | None = None
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="fetch")

    @property
    def traffic(self) -> Traffic:
        """What was received so far, with the headers."""
        return Traffic(self._ranges.bytes, self._again, self._ranges.requests)

    def expect(self, tensors: Sequence[TensorInfo]) -> None:
        """The order in which tensors will be read; the next bytes are fetched while earlier ones are processed."""
        with self._lock:
            self._expected = list(tensors)
            self._order = {(tensor.file, tensor.offset): number for number, tensor in enumerate(tensors)}

    def limit(self, max_ram: int) -> None:
        """Take at most a quarter of `max_ram` (bytes)."""
        self.memory = min(self.memory, max(max_ram // 4, 2 * SEGMENT))

    def keep(self, spans: Iterable[Span], folder: Path) -> None:
        """Copy these spans to a scratch file in `folder` when they come: they will be read again, as they are.

        Long ones are left out, and those beyond a gigabyte in all. Raises OutputError.
        """
        chosen, total = [], 0
        for span in sorted(set(spans)):
            if span.nbytes <= _LONGEST_KEPT and total + span.nbytes <= _MOST_KEPT:
                chosen.append(span)
                total += span.nbytes
        self._kept = KeptRows(folder, chosen)

    def keeps(self, spans: Iterable[Span]) -> bool:
        """Whether all these spans are in the scratch file already."""
        return self._kept is not None and all(map(self._kept.has, spans))

    def read(self, tensor: TensorInfo, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """`nbytes` bytes of a tensor's data, from its byte `offset`.

        Raises:
            ReadError: the file changed on the server, or the connection broke for good; a later run resumes.
        """
        buffer = np.empty(nbytes, np.uint8)
        span = Span(tensor.file, tensor.offset + offset, nbytes)
        if self._kept is not None and self._kept.read(span, buffer):
            return buffer
        keys = self._keys(tensor, offset, nbytes)
        with self._lock:
            lost = [key for key in keys if key not in self._segments and key in self._fetched]
        if lost and nbytes < sum(self._sizes[key] for key in lost):
            # a few rows of what was dropped from memory: only these are fetched again
            buffer[:] = np.frombuffer(self._fetch(span), np.uint8)
            with self._lock:
                self._again += nbytes
            return buffer
        self._ahead(tensor, keys)
        done = 0
        for key in keys:
            data = self._segment(tensor, key).result()
            start = span.start + done - key[1]
            piece = np.frombuffer(data, np.uint8)[start : start + nbytes - done]
            buffer[done : done + len(piece)] = piece
            done += len(piece)
        return buffer

    def _keys(self, tensor: TensorInfo, offset: int, nbytes: int) -> list[_Key]:
        """The segments of a part of a tensor, in order."""
        if not nbytes:
            return []
        first, last = offset // SEGMENT, (offset + nbytes - 1) // SEGMENT
        return [(tensor.file, tensor.offset + number * SEGMENT) for number in range(first, last + 1)]

    def _segment(self, tensor: TensorInfo, key: _Key) -> "Future[bytes]":
        """The bytes of a segment, on their way or here; the oldest ones make room for it."""
        with self._lock:
            future = self._segments.get(key)
            if future is not None and not (future.done() and future.exception() is not None):
                self._segments.move_to_end(key)
                return future
            size = min(SEGMENT, tensor.offset + tensor.nbytes - key[1])
            self._sizes[key] = size
            if key in self._fetched:
                self._again += size
            self._fetched.add(key)
            if future is None:
                self._held += size
            future = self._segments[key] = self._pool.submit(self._load, key, size)
            self._segments.move_to_end(key)
            for old in list(self._segments):
                if self._held <= self.memory:
                    break
                if old != key and self._segments[old].done():
                    del self._segments[old]
                    self._held -= self._sizes[old]
            return future

    def _load(self, key: _Key, size: int) -> bytes:
        try:
            return self._fetch(Span(key[0], key[1], size))
        except BaseException:
            with self._lock:
                self._fetched.discard(key)
            raise

    def _fetch(self, span: Span) -> bytes:
        remote = self._repository.remote(self._listing, span.file)
        try:
            data = self._ranges.read(remote, span.start, span.nbytes)
        except CheckpointError:
            raise
        except Exception as error:  # the client and its libraries raise errors of many classes
            sentence = self._repository.explain(error, span.file)
            raise ReadError(str(sentence)) from error
        if self._kept is not None:
            self._kept.add(span, data)
        return data

    def _ahead(self, tensor: TensorInfo, keys: list[_Key]) -> None:
        """Ask for the segments that follow `keys` in the expected order."""
        with self._lock:
            number = self._order.get((tensor.file, tensor.offset))
        remaining = min(_AHEAD, self.memory // 4)
        if number is None or not keys:
            return
        start = keys[-1][1] - tensor.offset + SEGMENT
        for following in self._expected[number:]:
            for key in self._keys(following, start, max(following.nbytes - start, 0)):
                remaining -= min(SEGMENT, following.offset + following.nbytes - key[1])
                if remaining < 0:
                    return
                if key not in self._fetched:
                    self._segment(following, key)
            start = 0

    def close(self) -> None:
        """End the requests that wait, and drop what is in memory."""
        self._ranges.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._segments.clear()
        if self._kept is not None:
            self._kept.close()


def memory_of(tensors: Iterable[TensorInfo]) -> int:
    """Bytes for the latest segments: two layers, or an embedding, if a quarter of the memory holds them."""
    layers: dict[str, int] = {}
    outside = 0
    for tensor in tensors:
        if match := _LAYER.search(tensor.name):
            layers[match[1]] = layers.get(match[1], 0) + tensor.nbytes
        else:
            outside = max(outside, tensor.nbytes + 4 * SEGMENT)
    return max(_LEAST_MEMORY, min(max(2 * max(layers.values(), default=0), outside), memory_limit() // 4))
