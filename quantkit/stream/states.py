"""The hidden states of all samples between two layers, in files: memory holds one sample at a time.

Files of a work folder, float32 (samples, tokens, hidden) in row-major order. Layers write to another file than they
read from, so that a killed run finds what the last finished layer left.
"""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import OutputError, ReadError
from quantkit.files import open_partial

Array = NDArray[np.float32]
_ITEM = 4


class States:
    """`read` and `write` give and take one sample (n_tokens, hidden), from many threads at once."""

    def __init__(self, folder: Path, n_samples: int, n_tokens: int, hidden: int) -> None:
        self.folder, self.shape = folder, (n_samples, n_tokens, hidden)
        self._bytes = n_tokens * hidden * _ITEM
        self._open: dict[str, int] = {}

    def holds(self, name: str) -> bool:
        """Whether the file `name` has been written to its end."""
        path = self.folder / name
        return path.exists() and path.stat().st_size == self._bytes * self.shape[0]

    def read(self, name: str, sample: int) -> Array:
        """One sample of the file `name`. Raises ReadError."""
        try:
            data = os.pread(self._file(name), self._bytes, sample * self._bytes)
        except OSError as error:
            raise ReadError(f"cannot read {self.folder / name} ({error.strerror}); check the disk") from error
        if len(data) != self._bytes:
            raise ReadError(f"{self.folder / name} is truncated; remove {self.folder} and run the command again")
        return np.frombuffer(bytearray(data), np.float32).reshape(self.shape[1:])

    def write(self, name: str, sample: int, values: Array) -> None:
        """One sample into the file `name`. Raises OutputError when the disk is full."""
        data = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint8).data
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._file(name), data[done:], sample * self._bytes + done)
        except OSError as error:
            raise OutputError(
                f"cannot write {self.folder / name} ({error.strerror}); free some space and run the command again"
            ) from error

    def _file(self, name: str) -> int:
        if name not in self._open:
            self._open[name] = open_partial(self.folder / name, keep=True)
        return self._open[name]

    def close(self) -> None:
        """Close the files; they stay."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
