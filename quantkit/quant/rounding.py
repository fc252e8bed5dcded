"""Rounding of a matrix to a grid, the ranges of groups, and the output error of rounding."""

from collections.abc import Sequence

import numpy as np

from quantkit.errors import UnsupportedError, UsageError
from quantkit.forward.arrays import (
    at_least,
    clip,
    divided,
    inner_product,
    namespace,
    put_where,
    rint,
    through_float16,
    to_bytes,
    where,
)
from quantkit.quant.grid import Array, Grid, Quantized

BITS = (2, 3, 4, 8)
_LEAST_SCALE, _GREATEST_SCALE = 2.0**-24, 65504.0  # of float16
_USUAL_GROUPS = (256, 128, 64, 32, 16)


def check_group(n_in: int, grid: Grid, name: str) -> None:
    """Raise UsageError for an unsupported `bits` or `group`, UnsupportedError if `n_in` is not whole groups.

    `name`: the name of the matrix in messages.
    """
    if grid.bits not in BITS:
        raise UsageError(f"{grid.bits} bits are not supported; choose from {', '.join(map(str, BITS))}")
    if grid.group < 1 and grid.group != -1:
        raise UsageError(f"group size {grid.group} is not valid; use 1 or more, or -1 for a whole row")
    if n_in % grid.group_size(n_in):
        whole = [str(size) for size in _USUAL_GROUPS if n_in % size == 0]
        fitting = (
            f"a group size of {', '.join(whole)} or -1 (a whole row)" if whole else "a group size of -1 (a whole row)"
        )
        raise UnsupportedError(
            f"{name} has {n_in} inputs, which is not a multiple of group size {grid.group}; use {fitting}, or skip it"
        )


def round_to_nearest(w: Array, grid: Grid) -> Quantized:
    """Quantize w (n_out, n_in) to nearest. The range of a group is from its minimum to its maximum and includes 0.

    Scales are rounded to float16 before the integers are computed. A group of zeros stays exact.
    """
    low, high = group_ranges(w, grid)
    scales, zeros = scales_and_zeros(low, high, grid)
    return round_with(w, scales, zeros, grid)


def round_with(w: Array, scales: Array, zeros: Array, grid: Grid) -> Quantized:
    """Quantize w (n_out, n_in) with the given scales and zero points (n_out, n_groups), groups in order."""
    q = in_groups(w, grid) / scales[:, :, None]
    rint(q, out=q)
    q += zeros[:, :, None]
    clip(q, 0.0, float(grid.top))
    return Quantized(grid, to_bytes(q.reshape(w.shape)), scales, to_bytes(zeros), grid.groups(w.shape[1]))


def group_ranges(w: Array, grid: Grid) -> tuple[Array, Array]:
    """Minimum and maximum of each group and 0: two arrays (n_out, n_groups)."""
    grouped = in_groups(w, grid)
    if namespace(grouped) is np:
        zero = np.float32(0)
        return grouped.min(axis=2, initial=zero), grouped.max(axis=2, initial=zero)
    xp = namespace(grouped)
    return -at_least(-xp.amin(grouped, 2), 0.0), at_least(xp.amax(grouped, 2), 0.0)


def in_groups(w: Array, grid: Grid) -> Array:
    """A view of w (n_out, n_in) as (n_out, n_groups, group size)."""
    return w.reshape(len(w), -1, grid.group_size(w.shape[1]))


def scales_and_zeros(low: Array, high: Array, grid: Grid) -> tuple[Array, Array]:
    """Scales (with float16 values) and integer zero points, both float32, for ranges with low <= 0 <= high."""
    xp, top, least = namespace(low), float(grid.top), float(grid.least_zero)
    # A minimum of the zero point leaves fewer integers above it.
    steps = 2 * xp.maximum(high, -low) / top if grid.symmetric else xp.maximum((high - low) / top, high / (top - least))
    scales = where(steps > 0, float16_scales(steps), 1.0)
    if grid.symmetric:
        return scales, xp.full_like(scales, 1 << (grid.bits - 1))
    zeros = -low / scales
    rint(zeros, out=zeros)
    clip(zeros, least, top)
    return scales, zeros


def best_ranges(w: Array, weight: Array, grid: Grid, shrinks: Sequence[float]) -> tuple[Array, Array]:
    """Scales and zero points (n_out, n_groups) of the shrunk range with the smallest weighted error.

    `weight`: the weight of the squared error of each input (n_in,), or a quadratic form for each group (n_groups, group
    size, group size). `shrinks`: factors of the full range; the first of equal candidates wins, so with factor 1 the
    error never increases. Finally each scale is refitted to its integers by least squares, if that reduces the error.

    A symmetric grid has one integer more below zero than above it. So each range is also tried with the sign of the
    scale for which the largest magnitude is at that end: the step is smaller, and a scale may be negative.
    """
    xp, (low, high) = namespace(w), group_ranges(w, grid)
    grouped = in_groups(w, grid)
    if weight.ndim == 1:
        weight = weight.reshape(len(low[0]), 1, -1)
    best_scales, best_zeros = scales_and_zeros(low, high, grid)
    least = xp.full_like(low, np.inf)

    def take(scales: Array, zeros: Array) -> None:
        difference = nearest(grouped, scales, zeros, grid)
        difference -= grouped
        error = _product(_across(difference, weight), difference)
        better = error < least
        for target, values in ((least, error), (best_scales, scales), (best_zeros, zeros)):
            put_where(target, better, values)

    for shrink in shrinks:
        take(*scales_and_zeros(low * shrink, high * shrink, grid))
    if grid.symmetric:
        lowest = where(high > -low, high, low) / -float(1 << (grid.bits - 1))
        for shrink in shrinks:
            take(where(lowest != 0, float16_scales(lowest * shrink), 1.0), best_zeros)
    whole = nearest(grouped, best_scales, best_zeros, grid)
    across = _across(whole, weight)
    met, length = _product(across, grouped), _product(across, whole)
    fits = (met > 0) & (length > 0)  # the sign of the scale stays
    factor = divided(met, length, fits, 1.0)
    take(where(fits, float16_scales(best_scales * factor), best_scales), best_zeros)
    return best_scales, best_zeros


def _across(values: Array, weight: Array) -> Array:
    """M v for each group of v (n_out, n_groups, group size)."""
    if weight.shape[1] == 1:
        return values * weight[None, :, 0]
    product: Array = namespace(values).matmul(values.swapaxes(0, 1), weight).swapaxes(0, 1)
    return product


def _product(a: Array, b: Array) -> Array:
    """The inner product of each group: (n_out, n_groups)."""
    product: Array = namespace(a).einsum("ogi,ogi->og", a, b)
    return product


def nearest(grouped: Array, scales: Array, zeros: Array, grid: Grid) -> Array:
    """The grid value nearest to each value of `grouped` (n_out, n_groups, group size), as a new array."""
    q: Array = grouped / scales[:, :, None]
    rint(q, out=q)
    clip(q, -zeros[:, :, None], float(grid.top) - zeros[:, :, None])
    q *= scales[:, :, None]
    return q


def float16_scales(scales: Array) -> Array:
    """Scales of either sign rounded to float16, never to 0, as float32."""
    xp = namespace(scales)
    sizes = xp.abs(scales)
    clip(sizes, _LEAST_SCALE, _GREATEST_SCALE)
    rounded: Array = xp.copysign(through_float16(sizes), scales)
    return rounded


def output_error(w: Array, rounded: Array, gram: Array) -> tuple[float, float]:
    """The output error of rounding, tr(dW H dW') = ||dW X||^2 with dW = rounded - w, and its ratio to ||W X||^2.

    w and rounded: (n_out, n_in). gram: (n_in, n_in), H = X X', the sum over tokens. The ratio is 0 for a zero output.
    """
    error, whole = _energy(rounded - w, gram), _energy(w, gram)
    return error, error / whole if whole > 0 else 0.0


def _energy(w: Array, gram: Array) -> float:
    return inner_product(w @ gram, w)
