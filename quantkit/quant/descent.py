"""Coordinate descent over the integers and scales of a rounded matrix, which lowers its output error tr(dW H dW').

The error is quadratic in each integer and in each scale while all others are fixed. So each step goes to the minimum
along one coordinate, rounded to the grid (a scale: to float16), and the error never increases.
"""

import numpy as np
from numpy.typing import NDArray

from quantkit.quant.grid import Array, Grid
from quantkit.quant.rounding import float16_scales

_BLOCK = 128  # columns whose changes reach the slopes of all columns in one matrix product
_RUN = 16  # columns of a block whose changes reach each other one by one


def descend(
    w: Array, q: NDArray[np.uint8], scales: Array, zeros: Array, gram: Array, grid: Grid, sweeps: int = 1
) -> tuple[NDArray[np.uint8], Array]:
    """Integers uint8 (n_out, n_in) and scales float32 (n_out, n_groups) whose error is at most that of the input's.

    w: float32 (n_out, n_in). scales, zeros: float32 (n_out, n_groups); column i is in group i // group size.
    gram: float32 (n_in, n_in), H, damped, so that its diagonal is positive. The zero points stay.

    A sweep visits the groups in order: each integer of a group once, then its scale.
    """
    n_out, n_in = w.shape
    size = grid.group_size(n_in)
    block = size * max(1, _BLOCK // size)
    levels = np.array(q.T, np.float32, order="C")
    steps, zeros = np.array(scales.T, order="C"), np.ascontiguousarray(zeros.T)
    difference = (levels.reshape(-1, size, n_out) - zeros[:, None]) * steps[:, None]
    slopes = gram @ (difference.reshape(n_in, n_out) - w.T)  # half of the error's derivative by each weight
    del difference
    for _ in range(sweeps):
        for start in range(0, n_in, block):
            columns = slice(start, min(start + block, n_in))
            groups = slice(columns.start // size, columns.stop // size)
            changes = _descend_block(
                levels[columns],
                steps[groups],
                zeros[groups],
                slopes[columns],
                gram[columns, columns],
                size,
                np.float32(grid.top),
            )
            slopes += gram[:, columns] @ changes
    return np.ascontiguousarray(levels.T.astype(np.uint8)), np.ascontiguousarray(steps.T)


def _descend_block(
    levels: Array, steps: Array, zeros: Array, slopes: Array, gram: Array, size: int, top: np.float32
) -> Array:
    """Change the `levels` (n, n_out) and `steps` (n / size, n_out) of some groups; return the weights' changes."""
    changes = np.zeros_like(levels)
    for group, (step, zero) in enumerate(zip(steps, zeros, strict=True)):
        columns = slice(group * size, (group + 1) * size)
        for first in range(columns.start, columns.stop, _RUN):
            last = min(first + _RUN, columns.stop)
            run = slopes[first:last] + gram[first:last, :first] @ changes[:first]
            for k in range(first, last):
                slope = run[k - first]
                if k > first:
                    slope += gram[k, first:k] @ changes[first:k]
                slope /= -gram[k, k] * step
                slope += levels[k]
                np.rint(slope, out=slope)
                np.clip(slope, np.float32(0), top, out=slope)
                np.subtract(slope, levels[k], out=changes[k])
                changes[k] *= step
                levels[k] = slope
        # The weights of the group are step * (levels - zero): its step has one minimum too.
        length = levels[columns] - zero
        inner = slopes[columns] + gram[columns, : columns.stop] @ changes[: columns.stop]
        slope = np.einsum("io,io->o", inner, length)
        curve = np.einsum("io,io->o", gram[columns, columns] @ length, length)
        best = step - np.divide(slope, curve, out=np.zeros_like(slope), where=curve > 0)
        change = np.where(best * step > 0, float16_scales(best), step) - step
        change[change * (2 * slope + change * curve) >= 0] = 0
        changes[columns] += change * length
        step += change
    return changes
