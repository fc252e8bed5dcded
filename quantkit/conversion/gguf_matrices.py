"""Matrices of GGUF tensors: their rows as stored and in float32, in the order of the source or with moved neurons."""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.conversion.gguf_pass import check_finite
from quantkit.outputs.model import FLOAT_TYPES, Model, ModelTensor, widen
from quantkit.quant.neurons import Moved

Array = NDArray[np.float32]
# Rows that are rounded at once. The bytes depend on it in the last bit of a sum, so it is not an option.
ROWS = 256
_DTYPES: dict[GGMLQuantizationType, Any] = {kind: dtype for dtype, kind in FLOAT_TYPES.items()}


@dataclass(frozen=True)
class Move:
    """The new order of a matrix, and the matrix in the source's order (n_out, n_in)."""

    moved: Moved
    weight: Array


@dataclass(frozen=True)
class GgufMatrix:
    """Matrix `number` of a GGUF tensor of `model`, of `n_rows` rows, or that many rows of a matrix.

    `columns`: the input channels that its columns multiply, None if in order.
    """

    model: Model
    tensor: ModelTensor
    number: int
    n_rows: int
    columns: NDArray[np.int64] | None

    @property
    def shape(self) -> tuple[int, int]:
        """(n_out, n_in)."""
        return self.n_rows, self.tensor.n_columns

    @property
    def first_row(self) -> int:
        """The tensor's row that is this matrix's first one."""
        return self.number * self.n_rows

    @property
    def is_plain(self) -> bool:
        """Whether its columns are in order, and its values are floats that can be read row by row."""
        return self.columns is None and self.tensor.row_step == 1 and self.tensor.type in _DTYPES

    def step(self, rows: int) -> int:
        """About `rows` rows that can be read at once."""
        return self.tensor.row_step * max(1, rows // self.tensor.row_step)

    def rows(self, start: int, count: int, move: Move | None) -> tuple[NDArray[np.generic], Array]:
        """At most `count` rows as they are stored, and in float32. Raises CheckpointError."""
        tensor, stop = self.tensor, min(start + count, self.n_rows)
        if move is not None:
            floats = move.moved.rows(move.weight, start, stop)
            return floats.astype(_DTYPES[tensor.type]), floats
        rows = self._stored(start, stop)
        floats = widen(rows, tensor)
        check_finite(floats, tensor, self.first_row + start)
        return rows, floats

    def middle(self, count: int) -> slice:
        """About `count` rows from the middle."""
        row_step, step = self.tensor.row_step, self.step(count)
        middle = max(0, (self.n_rows - step) // 2) // row_step * row_step
        return slice(middle, min(middle + step, self.n_rows))

    def middle_rows(self, count: int) -> Array:
        """Those rows, float32 (n, n_in)."""
        middle = self.middle(count)
        return widen(self._stored(middle.start, middle.stop), self.tensor)

    def has_rows(self, weight: Array) -> bool:
        """Whether it has the rows of `weight` (n_out, n_in) in the same order, by some of them."""
        if self.shape != weight.shape or self.tensor.row_step != 1:
            return False
        columns = slice(None) if self.columns is None else self.columns
        return all(
            np.array_equal(widen(self._stored(at, at + 1), self.tensor)[0], weight[at, columns])
            for at in (0, 1, self.n_rows // 2, self.n_rows - 1)
        )

    def restore(self, written: Array, move: Move | None, source: Array, rounded: Array) -> None:
        """Put the written values (n_out, n_in) into `rounded`, whose rows `source` has in the source's order.

        Rows that the source does not have as they are (a family scales them) stay the source's.
        """
        if move is not None:
            rounded[:] = move.moved.restored(written)
            return
        columns = slice(None) if self.columns is None else self.columns
        places: dict[bytes, int] = {}
        step = self.step(ROWS)
        for start in range(0, len(written), step):
            rows = self.rows(start, step, None)[1]
            at_once = slice(start, start + len(rows))
            if np.array_equal(rows, source[at_once, columns]):
                rounded[at_once, columns] = written[at_once]
                continue
            places = places or {_digest(row[columns]): place for place, row in enumerate(source)}
            for row, values in zip(rows, written[start : start + step], strict=True):
                at = places.get(_digest(row))
                if at is not None:
                    rounded[at, columns] = values

    def _stored(self, start: int, stop: int) -> NDArray[np.generic]:
        return self.model.read_rows(self.tensor.name, self.first_row + start, self.first_row + stop)


def _digest(row: Array) -> bytes:
    return blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16).digest()
