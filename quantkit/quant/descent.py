"""Coordinate descent over the integers and scales of a rounded matrix, which lowers its output error tr(dW H dW').

The error is quadratic in each integer and in each scale while all others are fixed. So each step goes to the minimum
along one coordinate, rounded to the grid (a scale: to float16), and the error never increases.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantkit.forward.arrays import contiguous, copied, divided, namespace, to_bytes, to_floats, where
from quantkit.quant.column_runs import RUN, descend_run
from quantkit.quant.grid import Array, Grid
from quantkit.quant.rounding import float16_scales

_BLOCK = 128  # columns whose changes reach the slopes of all columns in one matrix product


@dataclass(frozen=True)
class Levels:
    """A rounded matrix. q: uint8 (n_out, n_in). scales, zeros: float32 (n_out, n_groups); see `Quantized`."""

    q: NDArray[np.uint8]
    scales: Array
    zeros: Array


def descend(w: Array, rounded: Levels, gram: Array, grid: Grid, sweeps: int = 1) -> tuple[NDArray[np.uint8], Array]:
    """Integers uint8 (n_out, n_in) and scales float32 (n_out, n_groups) whose error is at most that of `rounded`.

    w: float32 (n_out, n_in). gram: float32 (n_in, n_in), H, damped, so that its diagonal is positive. The zero points
    stay.

    A sweep visits the groups in order: each integer of a group once, then its scale.
    """
    n_out, n_in = w.shape
    size = grid.group_size(n_in)
    block = size * max(1, _BLOCK // size)
    levels = contiguous(to_floats(rounded.q.T))
    steps, zeros = contiguous(copied(rounded.scales.T)), contiguous(rounded.zeros.T)
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
                float(grid.top),
            )
            slopes += gram[:, columns] @ changes
    return contiguous(to_bytes(levels.T)), contiguous(steps.T)


def _descend_block(levels: Array, steps: Array, zeros: Array, slopes: Array, gram: Array, top: float) -> Array:
    """Change the `levels` (n, n_out) and `steps` (n / size, n_out) of some groups; return the weights' changes."""
    xp, size = namespace(levels), len(levels) // len(steps)
    changes: Array = xp.zeros_like(levels)
    for group, (step, zero) in enumerate(zip(steps, zeros, strict=True)):
        columns = slice(group * size, (group + 1) * size)
        for first in range(columns.start, columns.stop, RUN):
            run = slice(first, min(first + RUN, columns.stop))
            run_slopes = slopes[run] + gram[run, :first] @ changes[:first]
            changes[run] = descend_run(run_slopes, levels[run], step, gram[run, run], top)
        # The weights of the group are step * (levels - zero): its step has one minimum too.
        length = levels[columns] - zero
        inner = slopes[columns] + gram[columns, : columns.stop] @ changes[: columns.stop]
        slope = xp.einsum("io,io->o", inner, length)
        curve = xp.einsum("io,io->o", gram[columns, columns] @ length, length)
        best = step - divided(slope, curve, curve > 0, 0.0)
        change = where(best * step > 0, float16_scales(best), step) - step
        change[change * (2 * slope + change * curve) >= 0] = 0
        changes[columns] += change * length
        step += change
    return changes
