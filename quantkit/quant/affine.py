"""Rounding as MLX does it: w = q * scale + bias, with the range of each group of inputs from its edge to the other end.

The edge, the value of largest magnitude, stays exact, and so does 0. Source: MLX's mlx/backend/cpu/quantized.cpp.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantkit.quant.grid import Array

_LEAST_SCALE = np.float32(1e-7)
_ROWS = 1 << 16


@dataclass(frozen=True)
class Affine:
    """q: uint8 (n, n_in). scales, biases: float32 (n, n_groups), before they are rounded to their stored type."""

    q: NDArray[np.uint8]
    scales: Array
    biases: Array


def round_affine(w: Array, bits: int, group: int) -> Affine:
    """Round w (n, n_in), whose n_in is a multiple of `group`, to integers of `bits` bits."""
    n, n_in = w.shape
    q = np.empty((n, n_in), np.uint8)
    scales, biases = (np.empty((n, n_in // group), np.float32) for _ in range(2))
    step = max(1, _ROWS // n_in)
    for start in range(0, n, step):
        rows = slice(start, start + step)
        grouped = w[rows].reshape(-1, n_in // group, group)
        integers, scales[rows], biases[rows] = _round(grouped, np.float32((1 << bits) - 1))
        q[rows] = integers.reshape(-1, n_in)
    return Affine(q, scales, biases)


def _round(w: Array, top: np.float32) -> tuple[NDArray[np.uint8], Array, Array]:
    """The integers, scales and biases of groups (n, n_groups, group)."""
    low, high = w.min(axis=2), w.max(axis=2)
    below = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / top, _LEAST_SCALE)
    scale = np.where(below, scale, -scale)
    edge = np.where(below, low, high)
    q0 = np.rint(edge / scale)
    spread = q0 != 0
    scale = np.where(spread, edge / np.where(spread, q0, np.float32(1)), scale)
    bias = np.where(spread, edge, np.float32(0))
    q = w - bias[:, :, None]
    q /= scale[:, :, None]
    np.rint(q, out=q)
    np.clip(q, np.float32(0), top, out=q)
    return q.astype(np.uint8), scale, bias
