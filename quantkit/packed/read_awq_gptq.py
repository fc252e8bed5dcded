"""The linears of AWQ and GPTQ folders, ours or another tool's.

The code follows the formats' descriptions and shares nothing with `packing`, so that each checks the other. Value k of
a row of words is at bit k * bits of the row; bit 0 is the lowest bit of the first word. AWQ in 4 bit has a table for
the order within a word.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.tensor import TensorInfo
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.forward.weights import Array
from quantkit.packed.scheme import FLOATS, PackedLinear, Scheme, StoredTensors

_PARTS = ("qweight", "qzeros", "scales")
# The nibble of a word, counted from its lowest, that holds output 8 w + i of AWQ's 4 bit.
_AWQ_NIBBLE = np.array([0, 4, 1, 5, 2, 6, 3, 7])


@dataclass(frozen=True)
class Integers:
    """Rows of a linear: weight[o, i] = (q[o, i] - zeros[o, g]) * scales[o, g].

    q: uint8 (n, n_in). zeros: int32 (n, n_groups). scales: as stored, (n, n_groups). groups: g of each input (n_in,),
    None if they are in order.
    """

    q: NDArray[np.uint8]
    zeros: NDArray[np.int32]
    scales: NDArray[Any]
    groups: NDArray[np.int64] | None


@dataclass
class AwqGptqScheme(Scheme):
    """AWQ or GPTQ; the words of the last linear stay in memory, because a matrix is read in slices.

    `less_one`: zero points are stored minus one. `carried`: GPTQModel subtracted the one from whole words, so a zero
    point of 0 borrows from its neighbour. 3-bit values cross words and wrap in their own field.
    """

    method: str
    bits: int
    group: int
    less_one: bool = False
    carried: bool = False
    parts: tuple[str, ...] = (*_PARTS, "g_idx")
    _last: tuple[str, dict[str, NDArray[Any]]] | None = field(default=None, repr=False)

    @property
    def carried_whole(self) -> bool:
        """Whether the carry goes through whole words: values do not cross words."""
        return self.carried and 32 % self.bits == 0

    def linears(self, tensors: Mapping[str, TensorInfo], folder: Path) -> list[PackedLinear]:
        return _linears(tensors, self, folder)

    def integers(
        self, stored: StoredTensors, linear: PackedLinear, start: int, stop: int, *, with_values: bool = True
    ) -> Integers:
        """Outputs start..stop of a linear as integers, zero points and scales. Raises as `dequantized` does.

        Without `with_values`, `q` is empty.
        """
        words = self._words(stored, linear)
        outputs = np.arange(start, stop)
        zeros = _along_outputs(words["qzeros"], outputs, self).astype(np.int32)
        if self.less_one and not self.carried_whole:
            zeros += 1
            zeros &= (1 << self.bits) - 1 if self.carried else -1
        if not with_values:
            q = np.empty((0, linear.n_in), np.uint8)
        elif self.method == "awq":
            q = np.ascontiguousarray(_along_outputs(words["qweight"], outputs, self).T)
        else:
            columns = np.ascontiguousarray(words["qweight"][:, outputs[0] : outputs[-1] + 1].T)
            q = _values(columns, np.arange(linear.n_in), self.bits)
        return Integers(q, zeros.T, words["scales"][:, outputs].T, words.get("g_idx"))

    def dequantized(self, stored: StoredTensors, linear: PackedLinear, start: int, stop: int) -> Array:
        integers = self.integers(stored, linear, start, stop)
        matrix, groups = integers.q.astype(np.float32), integers.groups
        zero, scale = integers.zeros.astype(np.float32), integers.scales.astype(np.float32)
        if groups is None:
            by_group = matrix.reshape(len(matrix), linear.n_groups, -1)
            by_group -= zero[:, :, None]
            by_group *= scale[:, :, None]
        else:
            matrix -= zero[:, groups]
            matrix *= scale[:, groups]
        return matrix

    def forget(self) -> None:
        self._last = None

    def _words(self, stored: StoredTensors, linear: PackedLinear) -> dict[str, NDArray[Any]]:
        """The tensors of a linear; without g_idx if its groups are in order."""
        if self._last is not None and self._last[0] == linear.name:
            return self._last[1]
        words: dict[str, NDArray[Any]] = {part: stored.stored(f"{linear.name}.{part}") for part in _PARTS}
        if not np.isfinite(words["scales"].astype(np.float32)).all():
            raise CheckpointError(f"tensor {shown(linear.name)}.scales of {stored.folder} contains NaN or infinity")
        words["qweight"] = words["qweight"].view(np.uint32)
        words["qzeros"] = words["qzeros"].view(np.uint32)
        if self.carried_whole:
            words["qzeros"] = words["qzeros"] + np.uint32(sum(1 << at for at in range(0, 32, self.bits)))
        size = linear.n_in if self.group == -1 else self.group
        in_order = np.arange(linear.n_in) // size
        given = f"{linear.name}.g_idx" in stored.tensors
        groups = stored.stored(f"{linear.name}.g_idx").astype(np.int64) if given else in_order
        if groups.min() < 0 or groups.max() >= linear.n_groups:
            raise CheckpointError(
                f"tensor {shown(linear.name)}.g_idx of {stored.folder} has group {groups.max()} of {linear.n_groups};"
                " download it again"
            )
        if linear.n_in % size or not np.array_equal(groups, in_order):
            words["g_idx"] = groups
        self._last = (linear.name, words)
        return words


def read_awq_gptq(quantization: Mapping[str, Any], where: str) -> AwqGptqScheme:
    """Parse a quantization_config. Raises UnsupportedError for another method or packing."""
    method = quantization.get("quant_method", quantization.get("method", "gptq" if quantization else None))
    bits = quantization.get("bits", quantization.get("w_bit"))
    group = quantization.get("group_size", quantization.get("q_group_size"))
    packing = quantization.get("checkpoint_format", quantization.get("format", quantization.get("version")))
    known = {"awq": ("gemm", None), "gptq": ("gptq", "gptq_v2", None)}
    if method not in known:
        raise UnsupportedError(
            f"{where} is not quantized by AWQ or GPTQ ({shown(str(method))}); pass an AWQ or GPTQ folder"
        )
    packing = packing.lower() if isinstance(packing, str) else None
    if packing not in known[method]:
        raise UnsupportedError(
            f"{where} is packed as {method} {shown(str(packing))}; only"
            f" {' and '.join(filter(None, known[method]))} packing can be read"
        )
    if bits not in (2, 3, 4, 8) or type(group) is not int or (group <= 0 and group != -1):
        raise UnsupportedError(
            f"{where} has {method} of {shown(str(bits))} bits in groups of {shown(str(group))};"
            " only 2, 3, 4 and 8 bits and positive group sizes (or -1) can be read"
        )
    less_one = method == "gptq" and packing != "gptq_v2"
    meta = quantization.get("meta")
    makers = meta.get("quantizer") if isinstance(meta, dict) else None
    carried = less_one and any("gptqmodel" in str(maker).lower() for maker in makers or ())
    return AwqGptqScheme(method, int(bits), group, less_one, carried)


def _linears(tensors: Mapping[str, TensorInfo], scheme: AwqGptqScheme, folder: Path) -> list[PackedLinear]:
    """The quantized linears, with all their tensors, of consistent shapes."""
    linears = []
    for tensor in tensors.values():
        if not tensor.name.endswith(".qweight"):
            continue
        name = tensor.name.removesuffix(".qweight")
        parts = [tensors.get(f"{name}.{part}") for part in _PARTS]
        if any(part is None or len(part.shape) != 2 for part in parts):
            raise CheckpointError(f"linear {shown(name)} of {folder} has no {' and '.join(_PARTS)} of two dimensions")
        qweight, qzeros, scales = (part for part in parts if part is not None)
        n_groups, n_out = scales.shape
        words_out = -(-n_out * scheme.bits // 32)
        n_in = qweight.shape[0] if scheme.method == "awq" else _inputs(tensors.get(f"{name}.g_idx"), qweight, scheme)
        weight_shape = (n_in, words_out) if scheme.method == "awq" else (-(-n_in * scheme.bits // 32), n_out)
        kinds = (qweight.dtype, qzeros.dtype) == ("I32", "I32") and scales.dtype in FLOATS
        expected = 1 if scheme.group == -1 else -(-n_in // scheme.group)
        if not kinds or (qweight.shape, qzeros.shape, n_groups) != (weight_shape, (n_groups, words_out), expected):
            raise CheckpointError(
                f"linear {shown(name)} of {folder} has qweight {list(qweight.shape)}, qzeros {list(qzeros.shape)} and"
                f" scales {list(scales.shape)}, which do not match {scheme.bits} bits and group size"
                f" {scheme.group}; download it again"
            )
        linears.append(PackedLinear(name, n_out, n_in, n_groups))
    if not linears:
        raise CheckpointError(
            f"config.json of {folder} states quantization but no packed weights exist; download it again"
        )
    return linears


def _inputs(g_idx: TensorInfo | None, qweight: TensorInfo, scheme: AwqGptqScheme) -> int:
    return g_idx.n_params if g_idx is not None else qweight.shape[0] * 32 // scheme.bits


def _along_outputs(words: NDArray[np.uint32], outputs: NDArray[np.int64], scheme: AwqGptqScheme) -> NDArray[np.uint8]:
    """The values of adjacent `outputs` in rows of words that are packed along the outputs: (rows, len(outputs))."""
    shifts = 4 * _AWQ_NIBBLE if scheme.method == "awq" and scheme.bits == 4 else None
    return _values(words, outputs, scheme.bits, shifts)


def _values(
    words: NDArray[np.uint32], numbers: NDArray[np.int64], bits: int, shifts: NDArray[np.int64] | None = None
) -> NDArray[np.uint8]:
    """The integers with these adjacent numbers in each row of words: (rows, len(numbers)).

    `shifts`: the bit offsets of a word's integers, if they are not in order.
    """
    mask = np.uint32((1 << bits) - 1)
    if 32 % bits == 0:
        shifts = np.arange(0, 32, bits) if shifts is None else shifts
        first, last = numbers[0] // len(shifts), numbers[-1] // len(shifts) + 1
        values = words[:, first:last, None] >> shifts.astype(np.uint32)
        values &= mask
        start = numbers[0] - first * len(shifts)
        return values.astype(np.uint8).reshape(len(words), -1)[:, start : start + len(numbers)]
    at = numbers * bits
    word, shift = at // 32, (at % 32).astype(np.uint32)
    values = words[:, word] >> shift
    beyond = np.flatnonzero(at % 32 + bits > 32)
    if len(beyond):
        values[:, beyond] |= words[:, word[beyond] + 1] << (np.uint32(32) - shift[beyond])
    return (values & mask).astype(np.uint8)
