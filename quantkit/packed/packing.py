"""Packing of integers into int32 words for AWQ and GPTQ.

Both formats store a matrix as (n_in, n_out) and fill words from the lowest bit on. Sources: AutoAWQ's `WQLinear_GEMM`
(4 bit), GPTQModel's `pack_awq` (the other widths), AutoGPTQ's `QuantLinear.pack` and GPTQModel's `pack_original`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.quant.grid import Grid, Quantized

AWQ_BITS = (2, 3, 4, 8)
GPTQ_BITS = (2, 3, 4, 8)
WORD = 32
# nibble i of a word (from the lowest) contains this one of its eight outputs, in AWQ of 4 bit
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

Packed = dict[str, NDArray[Any]]


def why_not_packed(method: str, grid: Grid, n_in: int, n_out: int) -> str | None:
    """Why the format cannot store a matrix of `n_in` inputs and `n_out` outputs; None if it can.

    `method`: "awq" or "gptq". Both formats need whole words and whole groups. AutoAWQ, vLLM and GPTQModel read AWQ of 4
    bit; only GPTQModel reads the other widths.
    """
    known = AWQ_BITS if method == "awq" else GPTQ_BITS
    if grid.bits not in known:
        return f"{method} has no {grid.bits} bit packing (it has {', '.join(map(str, known))})"
    group = grid.group_size(n_in)
    if group <= 0 or n_in % group:
        return f"its {n_in} inputs are not a multiple of the group size {group}"
    values = WORD if grid.bits == 3 else WORD // grid.bits
    if n_out % values:
        return f"its {n_out} outputs are not a multiple of {values}, the {grid.bits}-bit values of a word"
    if method == "gptq" and n_in % values:
        return f"its {n_in} inputs are not a multiple of {values}, the {grid.bits}-bit values of a word"
    return None


def packed_shapes(method: str, grid: Grid, n_in: int, n_out: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors that store a matrix of `n_in` inputs and `n_out` outputs: suffix -> (safetensors dtype, shape)."""
    groups = n_in // grid.group_size(n_in)
    row = n_out * grid.bits // WORD
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "qweight": ("I32", (n_in, row) if method == "awq" else (n_in * grid.bits // WORD, n_out)),
        "qzeros": ("I32", (groups, row)),
        "scales": ("F16", (groups, n_out)),
    }
    return shapes if method == "awq" else {**shapes, "g_idx": ("I32", (n_in,))}


def gptq_version(grid: Grid) -> int:
    """1 for symmetric grids, which every loader reads; 2 for others, because GPTQModel refuses version 1 of them."""
    return 1 if grid.symmetric else 2


def pack_awq(quantized: Quantized) -> Packed:
    """int32 qweight (n_in, n_out * bits / 32), qzeros (n_groups, n_out * bits / 32), float16 scales (n_groups, n_out).

    In 4 bit the eight outputs of a word are interleaved; other widths are a plain stream of bits along the outputs.
    """
    pack = _interleaved if quantized.grid.bits == 4 else _stream_of_columns
    bits = quantized.grid.bits
    return {"qweight": pack(quantized.q, bits), "qzeros": pack(quantized.zeros, bits), "scales": _scales(quantized)}


def unpack_awq(packed: Mapping[str, NDArray[Any]], grid: Grid) -> Quantized:
    """The inverse of `pack_awq`."""
    unpack = _interleaved_back if grid.bits == 4 else _stream_back
    q = unpack(packed["qweight"], grid.bits)
    zeros = unpack(packed["qzeros"], grid.bits)
    scales = packed["scales"].astype(np.float32)
    return Quantized(grid, _turned(q), _turned(scales), _turned(zeros), grid.groups(len(q)))


def pack_gptq(quantized: Quantized, version: int | None = None) -> Packed:
    """int32 qweight (n_in * bits / 32, n_out), qzeros (n_groups, n_out * bits / 32), g_idx (n_in,); scales as AWQ's.

    `version` 1 ("gptq") stores zero - 1, `version` 2 ("gptq_v2") the zero; the default is `gptq_version`. In version 1
    a zero point of 0 wraps to the largest integer. Readers interpret it differently: AutoGPTQ's and ExLlama's kernels
    as 2^bits, GPTQModel as 0 with a carry into its neighbour.
    """
    bits = quantized.grid.bits
    zeros = (
        quantized.zeros
        if (version or gptq_version(quantized.grid)) == 2
        else (quantized.zeros - np.uint8(1)) & np.uint8(quantized.grid.top)
    )
    return {
        "qweight": _turned(pack_stream(quantized.q, bits)),
        "qzeros": _stream_of_columns(zeros, bits),
        "scales": _scales(quantized),
        "g_idx": quantized.groups.astype("<i4"),
    }


def unpack_gptq(packed: Mapping[str, NDArray[Any]], grid: Grid, version: int | None = None) -> Quantized:
    """The inverse of `pack_gptq`."""
    q = _stream_back(_turned(packed["qweight"]), grid.bits)
    zeros = _stream_back(packed["qzeros"], grid.bits)
    if (version or gptq_version(grid)) == 1:
        zeros = (zeros + np.uint8(1)) & np.uint8(grid.top)
    scales = packed["scales"].astype(np.float32)
    return Quantized(grid, q, _turned(scales), _turned(zeros), packed["g_idx"].astype(np.int32))


def _scales(quantized: Quantized) -> NDArray[np.float16]:
    return _turned(quantized.scales.astype("<f2"))


def _turned(matrix: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(matrix.T)


def _interleaved(values: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Columns of integers (n_out, n) as rows of words (n, n_out / 8)."""
    eights = values.reshape(-1, 8, values.shape[1])
    words = np.zeros((len(eights), values.shape[1]), "<u4")
    for nibble, output in enumerate(_ORDER):
        words |= eights[:, output].astype("<u4") << np.uint32(nibble * bits)
    return _turned(words.view("<i4"))


def _interleaved_back(words: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """The inverse, turned: (n, n_out)."""
    values = np.empty((*words.shape, 8), np.uint8)
    for nibble, output in enumerate(_ORDER):
        values[:, :, output] = (words.view("<u4") >> np.uint32(nibble * bits)) & 15
    return values.reshape(len(words), -1)


def _stream_of_columns(values: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    return pack_stream(values.T, bits)


def pack_stream(values: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Rows of integers as rows of words: value i fills bits i * bits ... of its row. Eight values make `bits` bytes."""
    n_bytes = values.shape[1] * bits // 8
    eights = np.pad(values, ((0, 0), (0, -values.shape[1] % 8))).reshape(len(values), -1, 8)
    gathered = np.zeros(eights.shape[:2], "<u8")
    for i in range(8):
        gathered |= eights[:, :, i].astype("<u8") << np.uint64(i * bits)
    row = gathered.view(np.uint8).reshape(*gathered.shape, 8)[:, :, :bits].reshape(len(values), -1)
    return np.ascontiguousarray(row[:, :n_bytes]).view("<i4")


def _stream_back(words: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    row = np.ascontiguousarray(words, "<i4").view(np.uint8)
    n_values = row.shape[1] * 8 // bits
    row = np.pad(row, ((0, 0), (0, -row.shape[1] % bits))).reshape(len(words), -1, bits)
    gathered = np.zeros((*row.shape[:2], 8), np.uint8)
    gathered[:, :, :bits] = row
    eights = gathered.view("<u8")
    top = np.uint64((1 << bits) - 1)
    values = [((eights[:, :, 0] >> np.uint64(i * bits)) & top).astype(np.uint8) for i in range(8)]
    return np.stack(values, axis=-1).reshape(len(words), -1)[:, :n_values]
