"""GGUF types whose blocks hold integer levels and scales: their shapes, and the packing of their bytes.

A weight of such a type is d * scale * point - dmin * minimum. d and dmin are float16 numbers of a block. scale and
minimum are integers of a group of columns. point is the level, or the level's entry in a table. Block layouts:
ggml-common.h; order of the bits: the dequantize_row functions of ggml-quants.c.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

_T = GGMLQuantizationType
_BYTES = NDArray[np.uint8]

IQ4_POINTS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Blocks:
    """The values of a matrix in one type.

    `points`: float32 or int8 (n_rows, n_cols). `d`: float32 with float16 values (n_rows, n_blocks); `dmin`: the same,
    or None for a type without minima. `scales` and `minima`: int16 (n_rows, n_groups); all ones where the type stores
    none.
    """

    points: NDArray[np.float32] | NDArray[np.int8]
    d: NDArray[np.float32]
    dmin: NDArray[np.float32] | None
    scales: NDArray[np.int16]
    minima: NDArray[np.int16] | None

    def rows(self, rows: slice) -> "Blocks":
        """Some rows of the matrix."""
        dmin = None if self.dmin is None else self.dmin[rows]
        minima = None if self.minima is None else self.minima[rows]
        return Blocks(self.points[rows], self.d[rows], dmin, self.scales[rows], minima)


@dataclass(frozen=True)
class BlockFormat:
    """What a type can hold.

    `group`: columns that share a scale. `groups`: groups of a block. `low`, `high`: the range of a point. `table`: the
    points, if they are not all integers of the range. `least_scale`, `greatest_scale`: the range of a group's integer
    scale; (1, 1) if the block has one float16 scale only. `greatest_minimum`: the greatest integer minimum of a group;
    0 for a type without minima, 1 for one float16 minimum only. `coarse`: a search tries larger steps too.
    """

    kind: GGMLQuantizationType
    group: int
    groups: int
    low: int
    high: int
    least_scale: int = 1
    greatest_scale: int = 1
    greatest_minimum: int = 0
    table: tuple[int, ...] | None = None
    coarse: bool = False

    @property
    def block(self) -> int:
        """Columns of a block."""
        return self.group * self.groups

    @property
    def scale_limits(self) -> tuple[int, int, int]:
        """The least and the greatest integer scale of a group, and its greatest integer minimum."""
        return self.least_scale, self.greatest_scale, self.greatest_minimum

    @property
    def has_group_scales(self) -> bool:
        """Whether groups of columns have integer scales."""
        return self.greatest_scale > 1


def _plain(kind: GGMLQuantizationType, low: int, high: int, minimum: int = 0) -> BlockFormat:
    return BlockFormat(kind, 32, 1, low, high, greatest_minimum=minimum)


FORMATS: dict[GGMLQuantizationType, BlockFormat] = {
    format_.kind: format_
    for format_ in (
        _plain(_T.Q4_0, -8, 7),
        _plain(_T.Q5_0, -16, 15),
        _plain(_T.Q8_0, -127, 127),
        _plain(_T.Q4_1, 0, 15, 1),
        _plain(_T.Q5_1, 0, 31, 1),
        BlockFormat(_T.IQ4_NL, 32, 1, -127, 113, table=IQ4_POINTS),
        BlockFormat(_T.IQ4_XS, 32, 8, -127, 113, -32, 31, table=IQ4_POINTS),
        BlockFormat(_T.Q2_K, 16, 16, 0, 3, 0, 15, 15),
        BlockFormat(_T.Q3_K, 16, 16, -4, 3, -32, 31),
        BlockFormat(_T.Q4_K, 32, 8, 0, 15, 0, 63, 63),
        BlockFormat(_T.Q5_K, 32, 8, 0, 31, 0, 63, 63),
        BlockFormat(_T.Q6_K, 16, 16, -32, 31, -128, 127),
    )
}


def pack_blocks(kind: GGMLQuantizationType, blocks: Blocks) -> _BYTES:
    """The bytes of a matrix in `kind`: uint8 (n_rows, row_bytes)."""
    format_ = FORMATS[kind]
    n_rows, n_cols = blocks.points.shape
    count = n_rows * n_cols // format_.block
    if format_.table is not None:
        level_of = np.zeros(format_.high - format_.low + 1, np.uint8)
        level_of[np.array(format_.table) - format_.low] = np.arange(len(format_.table))
        levels = level_of[(blocks.points - np.float32(format_.low)).astype(np.int16)]
    else:
        levels = (blocks.points - np.float32(0 if kind == _T.Q8_0 else format_.low)).astype(np.int16).astype(np.uint8)
    parts = _Parts(
        levels.reshape(count, format_.block),
        _half(blocks.d, count),
        _half(blocks.dmin, count),
        blocks.scales.reshape(count, -1).astype(np.int16),
        None if blocks.minima is None else blocks.minima.reshape(count, -1).astype(np.uint8),
    )
    return np.concatenate(_PACK[kind](parts), axis=1).reshape(n_rows, -1)


@dataclass(frozen=True)
class _Parts:
    """The parts of `count` blocks; levels start at 0, except those of Q8_0. d, dmin: bytes (count, 2)."""

    levels: _BYTES
    d: _BYTES
    dmin: _BYTES
    scales: NDArray[np.int16]
    minima: _BYTES | None


def _half(values: NDArray[np.float32] | None, count: int) -> _BYTES:
    halves = np.zeros(count, "<f2") if values is None else values.ravel().astype("<f2")
    return halves.view(np.uint8).reshape(count, 2)


def _nibbles(levels: _BYTES, run: int) -> _BYTES:
    """The low 4 bits: of 2 * run levels, level i of the first half shares a byte with level i of the second."""
    halves = levels.reshape(len(levels), -1, 2, run) & np.uint8(15)
    packed: _BYTES = halves[:, :, 0] | halves[:, :, 1] << np.uint8(4)
    return packed.reshape(len(levels), -1)


def _pairs(levels: _BYTES) -> _BYTES:
    """The low 2 bits: levels i, 32 + i, 64 + i, 96 + i of 128 share a byte."""
    quarters = (levels & np.uint8(3)).reshape(len(levels), -1, 4, 32)
    packed: _BYTES = (quarters << np.array([[0], [2], [4], [6]], np.uint8)).sum(axis=2, dtype=np.uint8)
    return packed.reshape(len(levels), -1)


def _bit(levels: _BYTES, bit: int) -> _BYTES:
    """Bit `bit` of level 32 j + i as bit j of byte i."""
    bits = (levels >> np.uint8(bit) & np.uint8(1)).reshape(len(levels), -1, 32)
    packed: _BYTES = np.packbits(bits, axis=1, bitorder="little")[:, 0]
    return packed


def _q4_0(p: _Parts) -> list[_BYTES]:
    return [p.d, _nibbles(p.levels, 16)]


def _q4_1(p: _Parts) -> list[_BYTES]:
    return [p.d, _negated(p.dmin), _nibbles(p.levels, 16)]


def _fifth(p: _Parts) -> _BYTES:
    return np.packbits(p.levels >> np.uint8(4) & np.uint8(1), axis=1, bitorder="little")


def _q5_0(p: _Parts) -> list[_BYTES]:
    return [p.d, _fifth(p), _nibbles(p.levels, 16)]


def _q5_1(p: _Parts) -> list[_BYTES]:
    return [p.d, _negated(p.dmin), _fifth(p), _nibbles(p.levels, 16)]


def _q8_0(p: _Parts) -> list[_BYTES]:
    return [p.d, p.levels]


def _negated(halves: _BYTES) -> _BYTES:
    return halves ^ np.array([0, 0x80], np.uint8)


def _q2_k(p: _Parts) -> list[_BYTES]:
    assert p.minima is not None
    return [p.scales.astype(np.uint8) | p.minima << np.uint8(4), _pairs(p.levels), p.d, p.dmin]


def _q3_k(p: _Parts) -> list[_BYTES]:
    scales = (p.scales + 32).astype(np.uint8)
    low = scales[:, :8] & np.uint8(15) | (scales[:, 8:] & np.uint8(15)) << np.uint8(4)
    high = (scales >> np.uint8(4)).reshape(-1, 4, 4)
    high = high[:, 0] | high[:, 1] << np.uint8(2) | high[:, 2] << np.uint8(4) | high[:, 3] << np.uint8(6)
    return [_bit(p.levels, 2), _pairs(p.levels), low, high, p.d]


def _scales_and_minima(p: _Parts) -> _BYTES:
    """Eight scales and eight minima of 6 bits in 12 bytes (get_scale_min_k4)."""
    assert p.minima is not None
    scales, minima = p.scales.astype(np.uint8), p.minima
    return np.concatenate(
        [
            scales[:, :4] | scales[:, 4:] >> np.uint8(4) << np.uint8(6),
            minima[:, :4] | minima[:, 4:] >> np.uint8(4) << np.uint8(6),
            scales[:, 4:] & np.uint8(15) | (minima[:, 4:] & np.uint8(15)) << np.uint8(4),
        ],
        axis=1,
    )


def _q4_k(p: _Parts) -> list[_BYTES]:
    return [p.d, p.dmin, _scales_and_minima(p), _nibbles(p.levels, 32)]


def _q5_k(p: _Parts) -> list[_BYTES]:
    return [p.d, p.dmin, _scales_and_minima(p), _bit(p.levels, 4), _nibbles(p.levels, 32)]


def _q6_k(p: _Parts) -> list[_BYTES]:
    scales = p.scales.astype(np.int8).view(np.uint8)
    return [_nibbles(p.levels, 64), _pairs(p.levels >> np.uint8(4)), scales, p.d]


def _iq4_xs(p: _Parts) -> list[_BYTES]:
    scales = (p.scales + 32).astype(np.uint16)
    high = (scales >> np.uint16(4) << np.arange(0, 16, 2, dtype=np.uint16)).sum(axis=1, dtype=np.uint16)
    low = (scales[:, ::2] & np.uint16(15) | (scales[:, 1::2] & np.uint16(15)) << np.uint16(4)).astype(np.uint8)
    return [p.d, high.astype("<u2").view(np.uint8).reshape(-1, 2), low, _nibbles(p.levels, 16)]


_PACK: dict[GGMLQuantizationType, Callable[[_Parts], list[_BYTES]]] = {
    _T.Q4_0: _q4_0,
    _T.Q5_0: _q5_0,
    _T.Q8_0: _q8_0,
    _T.Q4_1: _q4_1,
    _T.Q5_1: _q5_1,
    _T.IQ4_NL: _q4_0,
    _T.IQ4_XS: _iq4_xs,
    _T.Q2_K: _q2_k,
    _T.Q3_K: _q3_k,
    _T.Q4_K: _q4_k,
    _T.Q5_K: _q5_k,
    _T.Q6_K: _q6_k,
}
