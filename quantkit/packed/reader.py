"""Reads AWQ and GPTQ folders, ours or another tool's: every linear as the float32 matrix that a runtime computes with.

The code follows the formats' descriptions and shares nothing with `packing`, so that each checks the other. Value k of
a row of words is at bit k * bits of the row; bit 0 is the lowest bit of the first word. AWQ in 4 bit has a table for
the order within a word.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.folder import quantization_config, read_small_file
from quantkit.checkpoint.jsonfile import parse_object, shown
from quantkit.checkpoint.tensor import NUMPY_DTYPES, TensorInfo
from quantkit.checkpoint.weights import open_weights
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families import find_architecture
from quantkit.families.base.output_head import untied_config
from quantkit.forward.weights import Array, Weights

_PARTS = ("qweight", "qzeros", "scales")
_FLOATS = ("F16", "BF16", "F32")
# The nibble of a word, counted from its lowest, that holds output 8 w + i of AWQ's 4 bit.
_AWQ_NIBBLE = np.array([0, 4, 1, 5, 2, 6, 3, 7])


@dataclass(frozen=True)
class Scheme:
    """How a folder's linears are quantized. `method`: "awq" or "gptq"; `group`: -1 for all inputs of a row.

    `less_one`: zero points are stored minus one. `carried`: GPTQModel subtracted the one from whole words, so a zero
    point of 0 borrows from its neighbour. 3-bit values cross words and wrap in their own field.
    """

    method: str
    bits: int
    group: int
    less_one: bool = False
    carried: bool = False

    @property
    def carried_whole(self) -> bool:
        """Whether the carry goes through whole words: values do not cross words."""
        return self.carried and 32 % self.bits == 0


@dataclass(frozen=True)
class PackedLinear:
    """A linear as stored: matrix (n_out, n_in), `n_groups` groups of inputs."""

    name: str
    n_out: int
    n_in: int
    n_groups: int


class QuantizedFolder:
    """An open folder of quantized weights. Only the words of the last linear are in memory.

    Attributes:
        config: config.json without its quantization_config; untied if the head differs from the embedding.
        notes: the changes of config.json.
        quantization: the quantization_config.
        scheme: the quantization_config, parsed.
        tensors: every tensor as stored.
        linears: the quantized linears by name ("model.layers.0.mlp.down_proj").
        names: the tensors of the model before quantization (NAME.weight for each quantized linear).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = parse_object(read_small_file(folder, "config.json", str(folder)), f"config.json of {folder}")
        self.quantization = quantization_config(config) or _beside(folder)
        self.config = {key: value for key, value in config.items() if key != "quantization_config"}
        self.scheme = read_scheme(self.quantization, str(folder))
        self._files = open_weights(folder, str(folder))
        try:
            self.tensors: Mapping[str, TensorInfo] = MappingProxyType(dict(sorted(self._files.tensors.items())))
            self.linears = {linear.name: linear for linear in _linears(self.tensors, self.scheme, folder)}
            self.config, self.notes = untied_config(self.config, self.tensors, self.stored_rows)
        except BaseException:
            self._files.close()
            raise
        packed = {f"{name}.{part}" for name in self.linears for part in (*_PARTS, "g_idx")}
        self.names = frozenset(self.tensors.keys() - packed) | {f"{name}.weight" for name in self.linears}
        self._turned = _is_turned(self.config)
        self._last: tuple[str, dict[str, NDArray[Any]]] | None = None

    @property
    def weights(self) -> Weights:
        """What the forward pass reads: rows and whole tensors of the model, quantized linears as float32."""
        return Weights(self.whole, self.rows, self.names)

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows of a tensor of the model, as (prod(shape[:-1]), shape[-1]). Raises LookupError for an unknown name."""
        linear = self.linears.get(name.removesuffix(".weight"))
        if linear is None or not name.endswith(".weight"):
            return self.stored_rows(name, start, stop)
        if self._turned:
            return self.dequantized(linear.name).T[start:stop]
        return self.dequantized(linear.name, start, stop)

    def whole(self, name: str) -> NDArray[Any]:
        """A tensor of the model in its shape. Raises LookupError for an unknown name."""
        linear = self.linears.get(name.removesuffix(".weight"))
        if linear is not None and name.endswith(".weight"):
            return self.dequantized(linear.name).T if self._turned else self.dequantized(linear.name)
        return self.stored(name)

    def stored(self, name: str) -> NDArray[Any]:
        """A tensor as it is stored."""
        tensor = self.tensors[name]
        return self.stored_rows(name, 0, tensor.n_rows).reshape(tensor.shape)

    def stored_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows of a tensor as they are stored, as (prod(shape[:-1]), shape[-1])."""
        assert self._files.descriptors is not None
        tensor = self.tensors[name]
        row = tensor.nbytes // max(tensor.n_rows, 1)
        data, done = np.empty((stop - start) * row, np.uint8), 0
        while done < len(data):
            at = tensor.offset + start * row + done
            got = os.preadv(self._files.descriptors[tensor.file], [data[done:].data], at)
            if got == 0:
                raise CheckpointError(
                    f"{tensor.file} of {self.folder} ends inside tensor {shown(tensor.name)}; it changed after it"
                    " was opened, run the command again"
                )
            done += got
        return data.view(NUMPY_DTYPES[tensor.dtype]).reshape(stop - start, tensor.row_length)

    def dequantized(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Outputs start..stop of a quantized linear: float32 (stop - start, n_in), (q - zero) * scale.

        Raises CheckpointError for scales that are not finite, or groups that do not exist.
        """
        linear, scheme = self.linears[name], self.scheme
        words = self._words(linear)
        outputs = np.arange(start, linear.n_out if stop is None else min(stop, linear.n_out))
        zeros = _along_outputs(words["qzeros"], outputs, scheme).astype(np.int32)
        if scheme.less_one and not scheme.carried_whole:
            zeros += 1
            zeros &= (1 << scheme.bits) - 1 if scheme.carried else -1
        zero, scale = zeros.T.astype(np.float32), words["scales"][:, outputs].T.astype(np.float32)
        if scheme.method == "awq":
            q = np.ascontiguousarray(_along_outputs(words["qweight"], outputs, scheme).T)
        else:
            columns = np.ascontiguousarray(words["qweight"][:, outputs[0] : outputs[-1] + 1].T)
            q = _values(columns, np.arange(linear.n_in), scheme.bits)
        matrix, groups = q.astype(np.float32), words.get("g_idx")
        if groups is None:
            by_group = matrix.reshape(len(outputs), linear.n_groups, -1)
            by_group -= zero[:, :, None]
            by_group *= scale[:, :, None]
        else:
            matrix -= zero[:, groups]
            matrix *= scale[:, groups]
        return matrix

    def _words(self, linear: PackedLinear) -> dict[str, NDArray[Any]]:
        """The tensors of a linear; without g_idx if its groups are in order.

        Those of the last linear stay in memory, because a matrix is read in slices.
        """
        if self._last is not None and self._last[0] == linear.name:
            return self._last[1]
        words: dict[str, NDArray[Any]] = {part: self.stored(f"{linear.name}.{part}") for part in _PARTS}
        if not np.isfinite(words["scales"].astype(np.float32)).all():
            raise CheckpointError(f"tensor {shown(linear.name)}.scales of {self.folder} contains NaN or infinity")
        words["qweight"] = words["qweight"].view(np.uint32)
        words["qzeros"] = words["qzeros"].view(np.uint32)
        if self.scheme.carried_whole:
            words["qzeros"] = words["qzeros"] + np.uint32(sum(1 << at for at in range(0, 32, self.scheme.bits)))
        size = linear.n_in if self.scheme.group == -1 else self.scheme.group
        in_order = np.arange(linear.n_in) // size
        given = f"{linear.name}.g_idx" in self.tensors
        groups = self.stored(f"{linear.name}.g_idx").astype(np.int64) if given else in_order
        if groups.min() < 0 or groups.max() >= linear.n_groups:
            raise CheckpointError(
                f"tensor {shown(linear.name)}.g_idx of {self.folder} has group {groups.max()} of {linear.n_groups};"
                " download it again"
            )
        if linear.n_in % size or not np.array_equal(groups, in_order):
            words["g_idx"] = groups
        self._last = (linear.name, words)
        return words

    def close(self) -> None:
        """Close the files."""
        self._last = None
        self._files.close()

    def __enter__(self) -> "QuantizedFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_quantized(folder: Path) -> QuantizedFolder:
    """A folder of AWQ (GEMM) or GPTQ (gptq, gptq_v2) weights, headers checked.

    Raises:
        CheckpointError: a file is missing or malformed, or tensors contradict config.json.
        UnsupportedError: it is quantized by another method, or not quantized.
    """
    return QuantizedFolder(folder)


def read_scheme(quantization: Mapping[str, Any], where: str) -> Scheme:
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
    return Scheme(method, int(bits), group, less_one, carried)


def _linears(tensors: Mapping[str, TensorInfo], scheme: Scheme, folder: Path) -> list[PackedLinear]:
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
        kinds = (qweight.dtype, qzeros.dtype) == ("I32", "I32") and scales.dtype in _FLOATS
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


def _inputs(g_idx: TensorInfo | None, qweight: TensorInfo, scheme: Scheme) -> int:
    return g_idx.n_params if g_idx is not None else qweight.shape[0] * 32 // scheme.bits


def _beside(folder: Path) -> dict[str, Any]:
    """quantize_config.json: some tools write it and leave config.json as it is."""
    name = "quantize_config.json"
    if not (folder / name).is_file():
        return {}
    return parse_object(read_small_file(folder, name, str(folder)), f"{name} of {folder}")


def _is_turned(config: Mapping[str, Any]) -> bool:
    try:
        return find_architecture(config).attention.form.turned
    except UnsupportedError:
        return False


def _along_outputs(words: NDArray[np.uint32], outputs: NDArray[np.int64], scheme: Scheme) -> NDArray[np.uint8]:
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
