"""What adapters do to the rows of one tensor: W' = W + s B A, and its variants.

LoRA (Hu et al. 2021, arXiv:2106.09685): W' = W + s B A, with W (out, in), A (r, in), B (out, r), s = alpha / r.
rsLoRA (Kalajdzievski 2023, arXiv:2312.03732): s = alpha / sqrt(r).
DoRA (Liu et al. 2024, arXiv:2402.09353): W' = m V / ||V||, with V = W + s B A, and a norm and a magnitude m an output.
Of several adapters each adds to the result of the one before; DoRA's norm is over the base's W, as in PEFT's merge.

The product is computed in float64, in blocks of rows at fixed places. So no value depends on the rows that are asked
for, or on the number of threads.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quantkit.adapters.adapter import Adapter
from quantkit.checkpoint import TensorInfo

Rows = Callable[[int, int], NDArray[np.float32]]
"""Rows start..stop of a tensor seen as (prod(shape[:-1]), shape[-1]), float32."""
_BLOCK = 1 << 16
"""Elements of a block of rows."""


class Change(Protocol):
    """One change of a tensor's rows. `before` reads the rows that it changes, `base` those before any product."""

    def rows(self, before: Rows, base: Rows, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start..stop after the change."""
        ...


@dataclass(frozen=True)
class Merge:
    """All changes of one tensor, in order. `dtype`: the type of the merged rows, that of the stored tensor."""

    changes: tuple[Change, ...]
    dtype: np.dtype[Any]

    def rows(self, stored: Callable[[int, int], NDArray[Any]], start: int, stop: int) -> NDArray[Any]:
        """Merged rows start..stop. `stored` reads rows of the tensor in the checkpoint."""

        products = [isinstance(change, LowRank) for change in self.changes]
        first = products.index(True) if True in products else len(products)

        def after(count: int) -> Rows:
            if count == 0:
                return lambda start, stop: stored(start, stop).astype(np.float32)
            change, before = self.changes[count - 1], after(count - 1)
            base = after(min(first, count - 1))
            return lambda start, stop: change.rows(before, base, start, stop)

        with np.errstate(over="ignore"):
            # a value out of float16's range becomes infinite here, and the pass refuses it by name
            return after(len(self.changes))(start, stop).astype(self.dtype)


@dataclass(frozen=True)
class Factor:
    """One factor of a product, read from an adapter; `transposed`: the stored matrix is the factor's transpose."""

    adapter: Adapter
    tensor: TensorInfo
    transposed: bool = False

    def rows(self, start: int, stop: int) -> NDArray[np.float64]:
        """Rows start..stop of the factor, float64."""
        if self.transposed:
            return self.whole()[start:stop]
        return self.adapter.read_rows(self.tensor, start, stop).astype(np.float64)

    def whole(self) -> NDArray[np.float64]:
        """The factor, float64; the factors read last are kept."""
        return _whole(self)


@lru_cache(maxsize=8)
def _whole(factor: Factor) -> NDArray[np.float64]:
    values = factor.adapter.read(factor.tensor).astype(np.float64)
    return np.ascontiguousarray(values.T) if factor.transposed else values


@dataclass(frozen=True, eq=False)
class LowRank:
    """W + s L R, of shape (rows, width), with L (rows, r) and R (r, width).

    `magnitude`: DoRA's m, one for each output. `by_column`: the outputs are the columns of W, as in an embedding or a
    weight that is stored as (in, out).
    """

    left: Factor
    right: Factor
    scaling: float
    n_rows: int
    width: int
    magnitude: NDArray[np.float64] | None = None
    by_column: bool = False
    _norms: list[NDArray[np.float64]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def rows(self, before: Rows, base: Rows, start: int, stop: int) -> NDArray[np.float32]:
        step = max(1, _BLOCK // self.width)
        result = np.empty((stop - start, self.width), np.float32)
        for block in range(start - start % step, stop, step):
            first, last = max(block, start), min(block + step, stop)
            end = min(block + step, self.n_rows)
            delta = self.scaling * (self.left.rows(block, end) @ self.right.whole())
            added = delta[first - block : last - block].astype(np.float32)
            values = before(first, last) + added
            if self.magnitude is not None and self.by_column:
                values = (values * (self.magnitude / self._column_norms(base))).astype(np.float32)
            elif self.magnitude is not None:
                norms = np.sqrt(((base(first, last) + added).astype(np.float64) ** 2).sum(axis=1))
                values = (values * (self.magnitude[first:last] / norms)[:, None]).astype(np.float32)
            result[first - start : last - start] = values
        return result

    def _column_norms(self, base: Rows) -> NDArray[np.float64]:
        """The norm of each column of W + s L R; computed once, over all rows."""
        with self._lock:
            if not self._norms:
                plain = LowRank(self.left, self.right, self.scaling, self.n_rows, self.width)
                step = max(1, _BLOCK // self.width)
                squares = np.zeros(self.width)
                for start in range(0, self.n_rows, step):
                    values = plain.rows(base, base, start, min(start + step, self.n_rows))
                    squares += (values.astype(np.float64) ** 2).sum(axis=0)
                self._norms.append(np.sqrt(squares))
            return self._norms[0]


@dataclass(frozen=True)
class Replace:
    """Rows of a tensor that the adapter holds whole (`modules_to_save`, biases, embeddings)."""

    adapter: Adapter
    tensor: TensorInfo

    def rows(self, before: Rows, base: Rows, start: int, stop: int) -> NDArray[np.float32]:
        del before, base
        return self.adapter.read_rows(self.tensor, start, stop)


@dataclass(frozen=True)
class ReplaceTokens:
    """Rows of single tokens (`trainable_token_indices`): row i of the adapter's tensor is token tokens[i]."""

    adapter: Adapter
    tensor: TensorInfo
    tokens: Sequence[int]

    def rows(self, before: Rows, base: Rows, start: int, stop: int) -> NDArray[np.float32]:
        del base
        values = before(start, stop).copy()
        for row, token in enumerate(self.tokens):
            if start <= token < stop:
                values[token - start] = self.adapter.read_rows(self.tensor, row, row + 1)[0]
        return values


@dataclass(frozen=True)
class AddBias:
    """A bias plus s times the bias of B (`lora_bias`)."""

    adapter: Adapter
    tensor: TensorInfo
    scaling: float

    def rows(self, before: Rows, base: Rows, start: int, stop: int) -> NDArray[np.float32]:
        del base
        added = self.scaling * self.adapter.read(self.tensor).astype(np.float64).reshape(1, -1)
        return before(start, stop) + added[start:stop].astype(np.float32)
