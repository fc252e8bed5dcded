"""The records of one model in a file, window by window; what a kill or a power cut has left incomplete is noticed.

The block of window w is at w * size: the RECORD of each scored token, then a CRC-32 of w + 1 (64 bits) and of them, all
little-endian. A block of zeros, a part of a block, or a block in another's place has a wrong checksum.
"""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import OutputError
from quantkit.files import cannot_write, open_partial
from quantkit.measurement.scores import RECORD
from quantkit.system.descriptors import read_at, write_at

_NUMBER, _CRC = struct.Struct("<Q"), struct.Struct("<I")


class RecordFile:
    """An open file of records. `values`: RECORD (n_windows, n_scored), a loss of NaN where none is known."""

    def __init__(self, path: Path, n_windows: int, n_scored: int) -> None:
        """Open or create the file, and read the windows that are complete in it. Raises OutputError."""
        self.path = path
        self.values: NDArray[np.void] = np.zeros((n_windows, n_scored), RECORD)
        self.values["loss"] = np.nan
        self._size = n_scored * RECORD.itemsize + _CRC.size
        self._file = open_partial(path, keep=True)
        try:
            for window in range(n_windows):
                self._read(window)
        except OSError as error:
            self.close()
            raise OutputError(f"cannot read {path}: {error.strerror}; check the disk") from error

    def keep(self, window: int, scores: NDArray[np.void]) -> None:
        """Set the records of a window, RECORD (n_scored,), and write them. Raises OutputError."""
        self.values[window] = scores
        data = self.values[window].tobytes()
        try:
            write_at(self._file, data + _CRC.pack(_checksum(window, data)), window * self._size)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def close(self) -> None:
        """Close the file; the values stay."""
        os.close(self._file)

    def _read(self, window: int) -> None:
        block = read_at(self._file, self._size, window * self._size)
        data, stated = block[: -_CRC.size], block[-_CRC.size :]
        if len(block) == self._size and _CRC.unpack(stated)[0] == _checksum(window, data):
            self.values[window] = np.frombuffer(data, RECORD)


def _checksum(window: int, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(_NUMBER.pack(window + 1)))
