"""The linears of AWQ and GPTQ checkpoints, ours or another tool's.

The code follows the formats' descriptions and shares nothing with `packing`, so that each checks the other.
AWQ in 4 bit has a table for the order within a word.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.quantized.scheme import (
    FLOATS,
    Array,
    MixedScheme,
    PackedLinear,
    Scheme,
    StoredTensors,
    compiled,
    require_finite,
)
from quantkit.checkpoint.quantized.words import integers_of
from quantkit.checkpoint.tensor import TensorInfo
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.units import listed

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
    """AWQ (GEMM) or GPTQ; the words of the last linear stay in memory, because a matrix is read in slices.

    `less_one`: zero points are stored minus one. `carried`: GPTQModel subtracted the one from whole words, so a zero
    point of 0 borrows from its neighbour. 3-bit values cross words and wrap in their own field. `maker`: the tool, if
    the method does not name it.
    """

    method: str
    bits: int
    group: int
    less_one: bool = False
    carried: bool = False
    parts: tuple[str, ...] = (*_PARTS, "g_idx")
    layout: str | None = None
    maker: str | None = None
    _last: tuple[str, dict[str, NDArray[Any]]] | None = field(default=None, repr=False)

    @property
    def carried_whole(self) -> bool:
        """Whether the carry goes through whole words: values do not cross words."""
        return self.carried and 32 % self.bits == 0

    def linears(self, tensors: Mapping[str, TensorInfo], where: str) -> list[PackedLinear]:
        return _linears(tensors, self, where)

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
            q = integers_of(columns, np.arange(linear.n_in), self.bits)
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

    @property
    def title(self) -> str:
        return super().title if self.maker is None else super().title.replace(self.method, self.maker, 1)

    def _words(self, stored: StoredTensors, linear: PackedLinear) -> dict[str, NDArray[Any]]:
        """The tensors of a linear; without g_idx if its groups are in order."""
        if self._last is not None and self._last[0] == linear.name:
            return self._last[1]
        words: dict[str, NDArray[Any]] = {part: stored.stored(f"{linear.name}.{part}") for part in _PARTS}
        require_finite(words["scales"].astype(np.float32), f"{linear.name}.scales", stored.where)
        words["qweight"] = words["qweight"].view(np.uint32)
        words["qzeros"] = words["qzeros"].view(np.uint32)
        if self.carried_whole:
            words["qzeros"] = words["qzeros"] + np.uint32(sum(1 << at for at in range(0, 32, self.bits)))
        size = linear.n_in if self.group == -1 else self.group
        in_order = np.arange(linear.n_in) // size
        has_groups = f"{linear.name}.g_idx" in stored.tensors
        groups = stored.stored(f"{linear.name}.g_idx").astype(np.int64) if has_groups else in_order
        if groups.min() < 0 or groups.max() >= linear.n_groups:
            raise CheckpointError(
                f"tensor {shown(linear.name)}.g_idx of {stored.where} has group {groups.max()} of {linear.n_groups};"
                " download it again"
            )
        if linear.n_in % size or not np.array_equal(groups, in_order):
            words["g_idx"] = groups
        self._last = (linear.name, words)
        return words


@dataclass
class AwqGemvScheme(Scheme):
    """AWQ in AutoAWQ's GEMV layout: every tensor has a row for each output, and values are in order within a word.

    qzeros and scales are padded to whole words; the first `n_groups` values count.
    """

    bits: int
    group: int
    method: str = "awq"
    parts: tuple[str, ...] = _PARTS
    layout: str | None = "gemv"

    def linears(self, tensors: Mapping[str, TensorInfo], where: str) -> list[PackedLinear]:
        linears = []
        for tensor in tensors.values():
            if not tensor.name.endswith(".qweight"):
                continue
            name = tensor.name.removesuffix(".qweight")
            qzeros, scales = (tensors.get(f"{name}.{part}") for part in _PARTS[1:])
            if qzeros is None or scales is None or {len(t.shape) for t in (tensor, qzeros, scales)} != {2}:
                raise _incomplete(name, (tensor, qzeros, scales), where)
            n_out, n_in = tensor.shape[0], tensor.shape[1] * 32 // self.bits
            groups = 1 if self.group == -1 else n_in // self.group
            kinds = (tensor.dtype, qzeros.dtype) == ("I32", "I32") and scales.dtype in FLOATS
            rows = qzeros.shape[0] == scales.shape[0] == n_out
            if not kinds or not rows or min(qzeros.shape[1] * 32 // self.bits, scales.shape[1]) < groups or groups < 1:
                raise CheckpointError(
                    f"linear {shown(name)} of {where} has qweight {list(tensor.shape)}, qzeros {list(qzeros.shape)} and"
                    f" scales {list(scales.shape)}; these do not match {self.bits} bits and group size {self.group}, so"
                    " download it again"
                )
            linears.append(PackedLinear(name, n_out, n_in, groups))
        return linears

    def dequantized(self, stored: StoredTensors, linear: PackedLinear, start: int, stop: int) -> Array:
        words, zeros = (stored.stored_rows(f"{linear.name}.{part}", start, stop) for part in _PARTS[:2])
        scales = stored.stored_rows(f"{linear.name}.scales", start, stop)[:, : linear.n_groups].astype(np.float32)
        require_finite(scales, f"{linear.name}.scales", stored.where)
        matrix = integers_of(words.view(np.uint32), np.arange(linear.n_in), self.bits).astype(np.float32)
        zero = integers_of(zeros.view(np.uint32), np.arange(linear.n_groups), self.bits).astype(np.float32)
        by_group = matrix.reshape(len(matrix), linear.n_groups, -1)
        by_group -= zero[:, :, None]
        by_group *= scales[:, :, None]
        return matrix


def read_awq_gptq(quantization: Mapping[str, Any], where: str) -> Scheme:
    """Parse a quantization_config. `dynamic` (GPTQModel) has own settings of linears by expressions.

    Raises UnsupportedError for another method or packing.
    """
    method = quantization.get("quant_method", quantization.get("method", "gptq" if quantization else None))
    packing = quantization.get("checkpoint_format", quantization.get("format", quantization.get("version")))
    known = {"awq": ("gemm", "gemv", None), "gptq": ("gptq", "gptq_v2", None)}
    if method not in known:
        raise UnsupportedError(
            f"{where} is already quantized by {shown(str(method))}, which quantkit does not read; take the original"
            " f32, f16 or bf16 checkpoint"
        )
    packing = packing.lower() if isinstance(packing, str) else None
    if packing not in known[method]:
        raise UnsupportedError(
            f"{where} is packed as {method} {shown(str(packing))}; only"
            f" {listed(filter(None, known[method]))} packing can be read, take the original 16-bit checkpoint"
        )
    less_one = method == "gptq" and packing != "gptq_v2"
    meta = quantization.get("meta")
    makers = meta.get("quantizer") if isinstance(meta, dict) else None
    carried = less_one and any("gptqmodel" in str(maker).lower() for maker in makers or ())
    schemes: dict[tuple[Any, Any], Scheme] = {}

    def scheme(settings: Mapping[str, Any]) -> Scheme:
        bits = settings.get("bits", settings.get("w_bit"))
        group = settings.get("group_size", settings.get("q_group_size"))
        if (str(bits), str(group)) not in schemes:
            check_grid(method, bits, group, where)
            gemm_scheme = AwqGptqScheme(method, int(bits), group, less_one, carried, layout=packing)
            schemes[str(bits), str(group)] = AwqGemvScheme(int(bits), group) if packing == "gemv" else gemm_scheme
        return schemes[str(bits), str(group)]

    default, dynamic = scheme(quantization), quantization.get("dynamic")
    if not isinstance(dynamic, Mapping) or not dynamic:
        return default
    schemes_by_pattern = [
        (compiled(pattern.removeprefix("+:"), where), scheme({**quantization, **settings}))
        for pattern, settings in dynamic.items()
        if not pattern.startswith("-:") and isinstance(settings, Mapping) and settings
    ]
    if not schemes_by_pattern:
        return default
    return MixedScheme(
        default,
        lambda name: next((scheme for pattern, scheme in schemes_by_pattern if pattern.match(name)), default),
    )


def check_grid(method: str, bits: Any, group: Any, where: str) -> None:
    """Raise UnsupportedError for a number of bits or a group size that the layout of `method` does not have."""
    if bits not in (2, 3, 4, 8) or type(group) is not int or (group <= 0 and group != -1):
        raise UnsupportedError(
            f"{where} has {method} of {shown(str(bits))} bits in groups of {shown(str(group))};"
            " quantkit reads 2, 3, 4 and 8 bits and positive group sizes (or -1); take the original 16-bit checkpoint"
        )


def _linears(tensors: Mapping[str, TensorInfo], scheme: AwqGptqScheme, where: str) -> list[PackedLinear]:
    """The quantized linears, with all their tensors, of consistent shapes."""
    linears = []
    for tensor in tensors.values():
        if not tensor.name.endswith(".qweight"):
            continue
        name = tensor.name.removesuffix(".qweight")
        parts = [tensors.get(f"{name}.{part}") for part in _PARTS]
        if any(part is None or len(part.shape) != 2 for part in parts):
            raise _incomplete(name, parts, where)
        qweight, qzeros, scales = (part for part in parts if part is not None)
        n_groups, n_out = scales.shape
        words_out = -(-n_out * scheme.bits // 32)
        n_in = qweight.shape[0] if scheme.method == "awq" else _inputs(tensors.get(f"{name}.g_idx"), qweight, scheme)
        weight_shape = (n_in, words_out) if scheme.method == "awq" else (-(-n_in * scheme.bits // 32), n_out)
        kinds = (qweight.dtype, qzeros.dtype) == ("I32", "I32") and scales.dtype in FLOATS
        expected = 1 if scheme.group == -1 else -(-n_in // scheme.group)
        if not kinds or (qweight.shape, qzeros.shape, n_groups) != (weight_shape, (n_groups, words_out), expected):
            raise CheckpointError(
                f"linear {shown(name)} of {where} has qweight {list(qweight.shape)}, qzeros {list(qzeros.shape)} and"
                f" scales {list(scales.shape)}; these do not match {scheme.bits} bits and group size"
                f" {scheme.group}, so download it again"
            )
        linears.append(PackedLinear(name, n_out, n_in, n_groups))
    return linears


def _incomplete(name: str, parts: Sequence[TensorInfo | None], where: str) -> CheckpointError:
    """The error for a linear that lacks a part, or has one that is not a matrix."""
    wrong = next(suffix for suffix, part in zip(_PARTS, parts, strict=True) if part is None or len(part.shape) != 2)
    problem = "has no" if parts[_PARTS.index(wrong)] is None else "needs a matrix as its"
    return CheckpointError(f"linear {shown(name)} of {where} {problem} {wrong}; download it again")


def _inputs(g_idx: TensorInfo | None, qweight: TensorInfo, scheme: AwqGptqScheme) -> int:
    return g_idx.n_params if g_idx is not None else qweight.shape[0] * 32 // scheme.bits


def _along_outputs(words: NDArray[np.uint32], outputs: NDArray[np.int64], scheme: AwqGptqScheme) -> NDArray[np.uint8]:
    """The values of adjacent `outputs` in rows of words that are packed along the outputs: (rows, len(outputs))."""
    shifts = 4 * _AWQ_NIBBLE if scheme.method == "awq" and scheme.bits == 4 else None
    return integers_of(words, outputs, scheme.bits, shifts)
