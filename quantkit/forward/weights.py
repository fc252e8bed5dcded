"""Linears computed in float32 from a checkpoint's tensors, a few million matrix elements in memory at a time."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.forward.arrays import Array as Array
from quantkit.forward.arrays import device, empty, place
from quantkit.forward.parts import Form

Read = Callable[[str], npt.NDArray[Any]]
ReadRows = Callable[[str, int, int], npt.NDArray[Any]]
RoundInput = Callable[[str, Array], Array]
"""(name of a linear, its input x (n, n_in)) -> x, rounded as a runtime that rounds activations does."""

_SLICE_ELEMENTS = 1 << 22
_PLAIN = Form()
# FP4 E2M1 by its four bits (OCP Microscaling Formats 1.0, 5.3.3); 32 of them share a power of two.
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_MX_BLOCK = 32


@dataclass(frozen=True)
class Weights:
    """`read` returns a whole tensor, `rows` rows of a tensor as a matrix (all axes but the last are rows).

    `names`: all tensor names; without them a tensor exists if it can be read. `read` and `rows` return numpy arrays, or
    float32 torch tensors on the device of the linear's input. Numpy arrays are moved to that device. `round_input`: of
    a runtime that rounds activations.
    """

    read: Read
    rows: ReadRows
    names: Collection[str] | None = None
    round_input: RoundInput | None = None

    def has(self, name: str) -> bool:
        """Whether the tensor exists."""
        if self.names is not None:
            return name in self.names
        try:
            self.read(name)
        except LookupError:
            return False
        return True

    def vector(self, name: str) -> Array:
        """A tensor as a vector of float32."""
        return f32(self.read(name)).reshape(-1)

    def linear(self, name: str, x: Array, n_out: int, form: Form = _PLAIN, index: int = 0) -> Array:
        """x (n, in) through the linear `name`, the `index`-th of those stacked in its tensor: (n, n_out)."""
        weight, n_in = name + form.weight, x.shape[1]
        if self.round_input is not None:
            x = self.round_input(name, x)
        if self.has(name + "_blocks"):
            out = self._times(x, n_out, lambda start, stop: self._mx_rows(name, index * n_out, start, stop))
        elif form.turned:
            out = self._turned(weight, x, n_out, index * n_in)
        else:
            first = index * n_out
            out = self._times(x, n_out, lambda start, stop: self.rows(weight, first + start, first + stop))
        return self._with_bias(out, name + form.bias, index)

    def _with_bias(self, out: Array, bias: str, index: int) -> Array:
        """The output of a linear with its bias, the `index`-th of those stacked in a tensor, where there is one."""
        if self.has(bias):
            out += place(f32(self.rows(bias, index, index + 1)).reshape(-1), device(out))
        return out

    def once(self, name: str, compute: Callable[[], Array]) -> Array:
        """The value `name` of a layer's forward, (n, width): `compute()`. A subclass may keep it, and skip the work."""
        return compute()

    @staticmethod
    def _times(x: Array, n_out: int, rows: Callable[[int, int], npt.NDArray[Any]]) -> Array:
        slices = _slices(n_out, x.shape[1])
        out = empty((len(x), n_out), x)
        for start, stop in slices:
            part: Array = x @ place(f32(rows(start, stop)), device(x)).T
            if len(slices) == 1:
                return part
            out[:, start:stop] = part
        return out

    def _turned(self, weight: str, x: Array, n_out: int, first: int) -> Array:
        out: Array | None = None
        for start, stop in _slices(x.shape[1], n_out):
            part = x[:, start:stop] @ place(f32(self.rows(weight, first + start, first + stop)), device(x))
            out = part if out is None else out + part
        assert out is not None
        return out

    def _mx_rows(self, name: str, first: int, start: int, stop: int) -> Array:
        """Rows of an MXFP4 matrix: two values per byte, the low half first, and a scale 2^(s - 127) per 32 values."""
        scales = np.asarray(self.rows(name + "_scales", first + start, first + stop), np.int32) - 127
        blocks = scales.shape[1]
        pairs = self.rows(name + "_blocks", (first + start) * blocks, (first + stop) * blocks)
        codes = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(*scales.shape, _MX_BLOCK)
        return np.ldexp(_E2M1[codes], scales[..., None]).reshape(len(scales), blocks * _MX_BLOCK)


def rows_of_whole(read: Read) -> ReadRows:
    """Rows for a caller that reads whole tensors only; it keeps the last tensor, so a sliced head is read once."""
    last: dict[str, npt.NDArray[Any]] = {}

    def rows(name: str, start: int, stop: int) -> npt.NDArray[Any]:
        if name not in last:
            last.clear()
            whole = read(name)
            last[name] = whole.reshape(-1, whole.shape[-1])
        return last[name][start:stop]

    return rows


def f32(values: npt.NDArray[Any]) -> Array:
    """An array of any float dtype in float32; torch tensors already are."""
    return np.asarray(values, dtype=np.float32) if isinstance(values, np.ndarray) else values


def _slices(n_rows: int, n_columns: int) -> list[tuple[int, int]]:
    step = max(1, _SLICE_ELEMENTS // n_columns)
    return [(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
