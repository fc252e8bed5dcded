"""The hidden states of all samples between two layers, in files: memory holds one sample at a time.

The files are in a work folder, float32 (samples, tokens, hidden) in row-major order. A layer never overwrites the file
that it reads, so a killed run resumes after the last finished layer.
"""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import OutputError, ReadError
from quantkit.files import open_partial
from quantkit.forward.arrays import fetch
from quantkit.system.descriptors import read_into, write_at

Array = NDArray[np.float32]
_ITEM = 4


class States:
    """`read` and `write` transfer one sample, float32 (n_tokens, hidden). Many threads may call them at once."""

    def __init__(self, folder: Path, n_samples: int, n_tokens: int, hidden: int) -> None:
        self.folder, self.shape = folder, (n_samples, n_tokens, hidden)
        self._bytes = n_tokens * hidden * _ITEM
        self._open: dict[str, int] = {}

    def holds(self, name: str) -> bool:
        """Whether the file `name` is complete."""
        path = self.folder / name
        return path.exists() and path.stat().st_size == self._bytes * self.shape[0]

    def read(self, name: str, sample: int) -> Array:
        """Read one sample of the file `name`. Raises ReadError when the file is truncated or cannot be read."""
        values = np.empty(self.shape[1:], np.float32)
        view, position = values.reshape(-1).view(np.uint8).data, sample * self._bytes
        while view:
            try:
                count = read_into(self._file(name), view, position)
            except OSError as error:
                raise ReadError(f"cannot read {self.folder / name} ({error.strerror}); check the disk") from error
            if not count:
                raise ReadError(f"{self.folder / name} is truncated; remove {self.folder} and run the command again")
            view, position = view[count:], position + count
        return values

    def write(self, name: str, sample: int, values: Array) -> None:
        """Write one sample to the file `name`. Raises OutputError when the disk is full."""
        data = np.ascontiguousarray(fetch(values), np.float32).reshape(-1).view(np.uint8).data
        try:
            write_at(self._file(name), data, sample * self._bytes)
        except OSError as error:
            raise OutputError(
                f"cannot write {self.folder / name} ({error.strerror}); free some space and run the command again"
            ) from error

    def save(self, name: str) -> None:
        """Begin to write the file `name` where states are held in memory; here, `write` does it."""

    def wait(self) -> None:
        """Wait until all files of `save` are complete. Raises OutputError when the disk is full."""

    def _file(self, name: str) -> int:
        if name not in self._open:
            self._open[name] = open_partial(self.folder / name, keep=True)
        return self._open[name]

    def close(self) -> None:
        """Close the files without deleting them."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()


def states_file(number: int) -> str:
    """The file of the input states of layer `number`. Two files alternate."""
    return f"states-{number % 2}"
