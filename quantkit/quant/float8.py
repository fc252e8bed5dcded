"""Rounding to 8-bit floats (e4m3fn), with a scale for each row or for each block of 128 x 128 weights.

A scale is the largest magnitude over 448, the largest float of the type, so that the weights fill its range. Sources:
compressed-tensors' `calculate_qparams` and DeepSeek-V3's `weight_dequant` (weight = float8 * scale).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.quant.float8_kernel import bfloat16_kernel, rounding_kernel
from quantkit.quant.grid import Array

LARGEST = 448.0
"""The largest finite value of e4m3fn."""
BLOCK = 128
_PIECE = 1 << 16
# of the biased exponents of float32 and e4m3fn, above three bits of mantissa
_BIAS = (127 - 7) << 3
_HALF_LESS_BIAS = np.uint32(((1 << 19) - 1 - (_BIAS << 20)) % (1 << 32))
_LEAST_NORMAL = np.float32(2.0**-6).view(np.uint32)
_STEPS = np.float32(2.0**14)


def row_maxima(w: Array) -> Array:
    """The largest magnitude of each row of w (n, n_in): float32 (n, 1)."""
    maxima: Array = np.maximum(w.max(axis=1), -w.min(axis=1))[:, None]
    return maxima


def block_maxima(w: Array) -> Array:
    """The largest magnitude of each block of w (n, n_in): float32 (ceil(n / 128), ceil(n_in / 128))."""
    columns = np.arange(0, w.shape[1], BLOCK)
    high = np.maximum.reduceat(np.maximum.reduceat(w, columns, axis=1), np.arange(0, len(w), BLOCK), axis=0)
    low = np.minimum.reduceat(np.minimum.reduceat(w, columns, axis=1), np.arange(0, len(w), BLOCK), axis=0)
    return np.maximum(high, -low)


def scales_of(maxima: Array) -> Array:
    """The scale of each maximum; 1 for a maximum of 0."""
    return np.where(maxima > 0, maxima / np.float32(LARGEST), np.float32(1)).astype(np.float32)


def to_float8(w: Array, scales: Array) -> NDArray[np.uint8]:
    """The bytes of w / scale rounded to the nearest float8, uint8 (n, n_in).

    scales: float32 (n, 1), or (ceil(n / 128), ceil(n_in / 128)) of blocks. Larger magnitudes than 448 become 448.
    """
    block = 0 if scales.shape == (len(w), 1) else BLOCK
    return (rounding_kernel(in_numpy) or in_numpy)(w, scales, block)


def bfloat16_to_float8(
    w: NDArray[Any], block: int, stored: Callable[[Array], Array]
) -> tuple[NDArray[np.uint8], Array] | None:
    """The bytes of w (n, n_in) in bfloat16, and the scales that `stored` makes of `scales_of`, as it stores them.

    `block`: 128 for scales of blocks, 0 for scales of rows. None without the C kernel, or if a value is not finite.
    """
    kernel = bfloat16_kernel(in_numpy)
    if kernel is None:
        return None
    bits = np.ascontiguousarray(w).view(np.uint16)
    maxima = kernel.maxima(bits, block)
    if not np.isfinite(maxima).all():
        return None
    scales = stored(scales_of(maxima))
    return kernel.round(bits, scales, block), scales


def in_numpy(w: Array, scales: Array, block: int) -> NDArray[np.uint8]:
    """`to_float8` without the C kernel. `block`: 128 for scales of blocks, 0 for scales of rows."""
    out = np.empty(w.shape, np.uint8)
    step = block or max(1, _PIECE // w.shape[1])
    for start in range(0, len(w), step):
        divisor = scales[start // block] if block else scales[start : start + step]
        if block:
            divisor = np.repeat(divisor, block)[: w.shape[1]]
        piece = w[start : start + step] / divisor
        np.clip(piece, np.float32(-LARGEST), np.float32(LARGEST), out=piece)
        out[start : start + step] = nearest_float8(piece)
    return out


def nearest_float8(x: Array) -> NDArray[np.uint8]:
    """The bytes of the nearest e4m3fn of finite x, |x| <= 448, ties to even: uint8 of x's shape.

    Integer arithmetic on the bits of the float32, three times as fast as a cast by ml_dtypes. A normal number rounds at
    bit 20 of its 23 bits of mantissa. Its exponent's bias becomes 7 instead of 127. Below 2^-6 the type has steps of
    2^-9: these are the steps of float32 at 2^14, so adding 2^14 rounds.
    """
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    code = magnitude >> np.uint32(20)
    code &= np.uint32(1)
    code += magnitude
    code += _HALF_LESS_BIAS
    code >>= np.uint32(20)
    below = magnitude < _LEAST_NORMAL
    if below.any():
        steps = (magnitude.view(np.float32) + _STEPS).view(np.uint32)
        steps -= _STEPS.view(np.uint32)
        np.copyto(code, steps, where=below)
    bits = bits >> np.uint32(24)
    bits &= np.uint32(0x80)
    code |= bits
    return code.astype(np.uint8)
