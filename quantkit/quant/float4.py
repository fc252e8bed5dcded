"""Rounding to 4-bit floats (e2m1: 0, 0.5, 1, 1.5, 2, 3, 4, 6) with scales of NVFP4 and MXFP4.

Sources: compressed-tensors' `generate_gparam` and `calculate_qparams`, OCP Microscaling Formats 1.0, section 6.3.
"""

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from quantkit.quant.float8 import LARGEST
from quantkit.quant.grid import Array

LARGEST_E2M1 = 6.0
_MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
_PIECE = 1 << 16


def pack_float4(w: Array, scales: Array, *, as_mlx: bool = False) -> NDArray[np.uint8]:
    """w / scale rounded to the nearest 4-bit float, ties to the even code: two to a byte, the first in the low bits.

    w: (n, n_in). scales: float32 (n, n_groups); a group whose scale is 0 becomes 0. `as_mlx`: ties to the smaller
    magnitude, and no negative zero.
    """
    n, n_in = w.shape
    packed = np.empty((n, n_in // 2), np.uint8)
    step = max(1, _PIECE // n_in)
    for start in range(0, n, step):
        rows = slice(start, start + step)
        scale = np.where(scales[rows] > 0, scales[rows], np.float32(np.inf))
        x = (w[rows].reshape(len(scale), scale.shape[1], -1) / scale[:, :, None]).reshape(len(scale), n_in)
        size, codes = np.abs(x), np.zeros(x.shape, np.uint8)
        for lower, middle in enumerate(_MIDDLES):
            codes += size > np.float32(middle) if as_mlx or lower % 2 == 0 else size >= np.float32(middle)
        negative = (x < 0) & (codes > 0) if as_mlx else x < 0
        codes |= negative.astype(np.uint8) << np.uint8(3)
        packed[rows] = codes[:, ::2] | codes[:, 1::2] << np.uint8(4)
    return packed


def global_scale(largest: float) -> np.float32:
    """NVFP4's scale of a matrix whose largest magnitude is `largest`: its widest group's scale becomes 448."""
    return np.float32(LARGEST * LARGEST_E2M1 / largest) if largest > 0 else np.float32(1)


def nvfp4_scales(w: Array, overall: np.float32, group: int = 16) -> NDArray[np.uint8]:
    """Scales of groups of w (n, n_in) as bytes of e4m3: overall * max / 6."""
    maxima = np.abs(w).reshape(len(w), -1, group).max(axis=2)
    scales = np.minimum(maxima * overall / np.float32(LARGEST_E2M1), np.float32(LARGEST))
    stored: NDArray[np.uint8] = scales.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return stored


def mxfp4_scales(w: Array, group: int = 32) -> NDArray[np.uint8]:
    """Scales of groups of w (n, n_in) as exponents (e8m0): the power of two that maps the largest to 4 up to 8.

    Larger magnitudes than 6 become 6, as the format's text has it.
    """
    maxima = np.abs(w).reshape(len(w), -1, group).max(axis=2)
    _, exponents = np.frexp(maxima)  # maxima = fraction * 2^exponent, with a fraction from 0.5 up to 1
    stored: NDArray[np.uint8] = np.where(maxima > 0, np.clip(exponents - 1 - 2 + 127, 0, 254), 0).astype(np.uint8)
    return stored


def mlx_mxfp4_scales(w: Array, group: int = 32) -> NDArray[np.uint8]:
    """Scales of groups of w (n, n_in) as MLX has them (e8m0): the smallest power of two that leaves no value above 6.

    A group of zeros has the scale 1. Source: `fp_quantize` of MLX.
    """
    maxima = np.abs(w).reshape(len(w), -1, group).max(axis=2)
    fractions, exponents = np.frexp(maxima / np.float32(LARGEST_E2M1))  # fraction * 2^exponent, from 0.5 up to 1
    exponents = np.where(fractions > 0.5, exponents, exponents - 1)
    stored: NDArray[np.uint8] = np.where(maxima > 0, np.clip(exponents + 127, 0, 254), 127).astype(np.uint8)
    return stored
