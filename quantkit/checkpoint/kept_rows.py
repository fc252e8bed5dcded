"""Bytes of a streamed source that are read a second time, in a scratch file beside the outputs.

A line of the index follows the bytes of each span, with their CRC-32. So a resumed run has what an earlier one kept.
"""

import json
import os
import threading
import zlib
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.files import cannot_write, open_partial
from quantkit.system.descriptors import read_at, write_at


@dataclass(frozen=True, order=True)
class Span:
    """`nbytes` bytes of a weight file from byte `start`."""

    file: str
    start: int
    nbytes: int


class KeptRows:
    """The spans to keep, in two files of `folder`: source-rows and source-rows.index."""

    def __init__(self, folder: Path, spans: Iterable[Span]) -> None:
        """Continue the files of an earlier run, or create them. Raises OutputError."""
        self._spans: dict[str, list[Span]] = {}
        self._places: dict[Span, int] = {}
        position = 0
        for span in sorted(set(spans)):
            self._spans.setdefault(span.file, []).append(span)
            self._places[span] = position
            position += span.nbytes
        self._longest = max((span.nbytes for span in self._places), default=0)
        self._pieces: dict[Span, dict[int, int]] = {}
        self._crcs: dict[Span, int] = {}
        self._lock = threading.Lock()
        self._data = open_partial(folder / "source-rows", keep=True)
        self._index = open_partial(folder / "source-rows.index", keep=True, append=True)
        self._load(folder / "source-rows.index")

    @property
    def nbytes(self) -> int:
        """Bytes of the scratch file once it is complete."""
        return sum(span.nbytes for span in self._places)

    def _load(self, path: Path) -> None:
        for line in path.read_bytes().splitlines():
            try:
                file, start, nbytes, offset, crc = json.loads(line)
            except (ValueError, TypeError):  # the last line of a killed run
                continue
            span = Span(file, start, nbytes)
            if self._places.get(span) == offset:
                self._crcs[span] = crc

    def add(self, fetched: Span, data: bytes) -> None:
        """Copy what these bytes of a file have of the spans. Raises OutputError."""
        spans = self._spans.get(fetched.file, [])
        end = fetched.start + fetched.nbytes
        first = bisect_left(spans, Span(fetched.file, fetched.start - self._longest, 0))
        for span in spans[first:]:
            if span.start >= end:
                return
            start, stop = max(span.start, fetched.start), min(span.start + span.nbytes, end)
            if start < stop and span not in self._crcs:
                self._copy(span, start, data[start - fetched.start : stop - fetched.start])

    def _copy(self, span: Span, start: int, piece: bytes) -> None:
        offset = self._places[span]
        try:
            write_at(self._data, piece, offset + start - span.start)
            with self._lock:
                pieces = self._pieces.setdefault(span, {})
                pieces[start] = len(piece)
                complete = sum(pieces.values()) == span.nbytes
            if complete:
                crc = zlib.crc32(read_at(self._data, span.nbytes, offset))
                line = json.dumps([span.file, span.start, span.nbytes, offset, crc]) + "\n"
                os.write(self._index, line.encode())
                self._crcs[span] = crc
        except OSError as error:
            raise cannot_write("into the work folder", error) from error

    def read(self, span: Span, buffer: NDArray[np.uint8]) -> bool:
        """Fill `buffer` with a kept span; False if it is not kept, or damaged."""
        crc = self._crcs.get(span)
        if crc is None:
            return False
        data = read_at(self._data, span.nbytes, self._places[span])
        if len(data) != span.nbytes or zlib.crc32(data) != crc:
            return False
        buffer[:] = np.frombuffer(data, np.uint8)
        return True

    def has(self, span: Span) -> bool:
        """Whether a span is kept already."""
        return span in self._crcs

    def close(self) -> None:
        """Close the files."""
        os.close(self._data)
        os.close(self._index)
