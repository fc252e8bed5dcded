"""Scales of GGUF blocks by weighted search: more candidates than ggml tries, and both signs.

Arrays have columns first, so that a row of a matrix is one vector lane: x is float32 (n_groups, group, n_rows). Sums
of numpy over columns are in order, so that `block_kernels.c` has the same bytes. Arrays may be tensors of torch.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.forward.arrays import (
    bounded,
    copied,
    device,
    divided,
    namespace,
    place,
    put_where,
    repeated,
    taken,
    through_float16,
    where,
)
from quantkit.gguf.blocks import BlockFormat
from quantkit.quant.grid import Array

# Part of the range that the largest value of a group may use, as a factor on the scale that just covers it.
_FACTORS = np.linspace(0.62, 1.12, 18).astype(np.float32)
_COARSE_FACTORS = np.linspace(1.15, 2.0, 32).astype(np.float32)
_MIN_FACTORS = np.linspace(0.60, 1.05, 14)
_TINY = 1e-30
_LATTICE = 0.0025  # mean squared error in steps, up to which a group lies on a lattice; 1/12 by chance


@dataclass
class Scales:
    """The scales of blocks: d, dmin float32 with float16 values (n_blocks, n_rows), scales and minima (n_groups,
    n_rows) as float32 integers."""

    d: Array
    dmin: Array | None
    scales: Array
    minima: Array | None

    def step(self, format_: BlockFormat) -> Array:
        """The step of a level: (n_groups, n_rows)."""
        step: Array = repeated(self.d, format_.groups) * self.scales
        return step

    def base(self, format_: BlockFormat) -> Array | None:
        """The value of level 0: (n_groups, n_rows), or None where it is 0."""
        if self.dmin is None:
            return None
        assert self.minima is not None
        base: Array = -repeated(self.dmin, format_.groups) * self.minima
        return base


def to_half(values: Array) -> Array:
    """The nearest float16 values, as float32; they are finite."""
    return through_float16(namespace(values).clip(values, -65504.0, 65504.0))


def nearest_points(values: Array, format_: BlockFormat) -> Array:
    """The point nearest to each value, as a new array."""
    if format_.table is None:  # a value that is not a number becomes the lowest point
        return bounded(namespace(values).round(values), format_.low, format_.high)
    # the middles between points are multiples of 1/2, so the half below a value decides
    halves = namespace(values).floor(bounded(values, format_.low, format_.high) * 2.0)
    if namespace(values) is np:
        points: Array = points_by_half(format_.table)[halves.astype(np.int16) - np.int16(2 * format_.low)]
        return points
    at: Any = halves
    of_table: Array = table_of(format_.table, device(values))[at.long() - 2 * format_.low]
    return of_table


@functools.cache
def points_by_half(table: tuple[int, ...]) -> Array:
    """The point nearest to each value h / 2 <= x < (h + 1) / 2; h runs between twice the ends of the table."""
    points = np.array(table, np.float32)
    inside = (np.arange(2 * table[0], 2 * table[-1] + 1, dtype=np.float32) + np.float32(0.5)) / np.float32(2)
    nearest: Array = points[np.abs(inside[:, None] - points).argmin(axis=1)]
    return nearest


@functools.cache
def table_of(table: tuple[int, ...], device: Any) -> Array:
    """`points_by_half` on a device of torch."""
    points: Array = place(points_by_half(table), device)
    return points


def search_scales(x: Array, weight: Array, format_: BlockFormat) -> Scales:
    """The scales of x (n_cols, n_rows) with the least squared error, weighted by `weight` (n_cols,)."""
    grouped = x.reshape(-1, format_.group, x.shape[1])
    weights = weight.reshape(-1, format_.group, 1)
    affine = format_.greatest_minimum > 0
    if affine:
        step, low = _affine(grouped, weights, format_)
    else:
        step, low = _symmetric(grouped, weights, format_), None
    if not format_.has_group_scales:
        ones = namespace(step).ones_like(step)
        return Scales(to_half(step), None if low is None else to_half(-low), ones, None if low is None else ones)
    if low is None:
        return symmetric_super(grouped, weights, step, format_)
    return _affine_super(grouped, weights, step, low, format_)


def _symmetric(x: Array, weight: Array, format_: BlockFormat) -> Array:
    """The step of each group, real: (n_groups, n_rows)."""
    xp = namespace(x)
    peak = taken(x, xp.abs(x).argmax(axis=1)[:, None], 1)[:, 0]
    best, least = xp.zeros_like(peak), xp.full_like(peak, np.inf)
    wx = weight * x
    for ratio in candidates(format_).tolist():
        step, gain = fitted(x, weight, wx, peak * ratio, format_)
        better = -gain < least
        put_where(least, better, -gain)
        put_where(best, better, step)
    return fitted(x, weight, wx, best, format_)[0]


def fitted(x: Array, weight: Array, wx: Array, step: Array, format_: BlockFormat) -> tuple[Array, Array]:
    """The least-squares step for the points that `step` gives, and by how much it lowers the squared error."""
    points = nearest_points(x * inverse(step, step != 0)[:, None], format_)
    dot = _sum(wx * points)
    norm = _sum(weight * points * points)
    fitted = divided(dot, norm, norm > _TINY, 0.0)
    return fitted, fitted * dot


def candidates(format_: BlockFormat) -> Array:
    """The steps that the search tries: float32 (n,), or (n, 2) for a type with minima.

    Without minima: factors on the value of a group with the largest magnitude. With minima: factors on the step that
    just covers a group, and the part of its range that is cut at the low end. With a factor top / k the ends are k
    levels apart: weights that lie on a lattice of that step are met exactly.
    """
    if format_.greatest_minimum == 0:
        factors: Array = np.concatenate([_FACTORS, _COARSE_FACTORS]) if format_.coarse else _FACTORS
        ends = np.repeat(np.array([format_.low, format_.high], np.float32), len(factors))
        return np.tile(factors, 2) / ends
    top = format_.high
    cuts = [(top / k, 0.0) for k in range(top, top // 2, -1)]
    cuts += [(factor, (1 - factor) * shift) for factor in _MIN_FACTORS for shift in (0.0, 0.5, 1.0)]
    return np.array(cuts, np.float32)


def super_ends(format_: BlockFormat) -> Array:
    """The integer scales that the group with the largest step of a super-block may get: float32 (n,)."""
    return np.array([format_.least_scale, format_.greatest_scale], np.float32)


def _affine(x: Array, weight: Array, format_: BlockFormat) -> tuple[Array, Array]:
    """The step and the lowest value of each group, both real: (n_groups, n_rows)."""
    xp, minima_only = namespace(x), format_.has_group_scales  # their minima are not positive
    low, high = xp.amin(x, 1), xp.amax(x, 1)
    if minima_only:
        low = xp.clip(low, None, 0.0)
    full = (high - low) / float(format_.high)
    sum_w = _sum(weight)
    sum_x = _sum(weight * x)
    best, best_low, least = copied(full), copied(low), xp.full_like(low, np.inf)
    for factor, cut in candidates(format_).tolist():
        step = full * factor
        start = low + cut * (high - low)
        points = nearest_points((x - start[:, None]) * inverse(step, step > 0)[:, None], format_)
        wp = weight * points
        sum_p, sum_pp, sum_xp = _sum(wp), _sum(wp * points), _sum(wp * x)
        det = sum_w * sum_pp - sum_p * sum_p
        good = det > 1e-6 * sum_w * sum_pp
        inv = inverse(det, good)
        fit = where(good, (sum_w * sum_xp - sum_x * sum_p) * inv, step)
        fit_low = where(good, (sum_pp * sum_x - sum_p * sum_xp) * inv, start)
        if minima_only:
            above = fit_low > 0
            fit = where(above, divided(sum_xp, sum_pp, sum_pp > _TINY, 0.0), fit)
            fit_low = where(~above, fit_low, 0.0)
        error = (
            fit * fit * sum_pp + 2 * fit * fit_low * sum_p + fit_low * fit_low * sum_w
            - 2 * fit * sum_xp - 2 * fit_low * sum_x
        )  # fmt: skip
        better = (error < least) & (fit >= 0)
        put_where(least, better, error)
        put_where(best, better, fit)
        put_where(best_low, better, fit_low)
    if minima_only:
        # A candidate may have met a lattice one level too high. Values elsewhere need the room at the low end.
        moved = best_low + best * xp.round(divided(low - best_low, best, best > 0, 0.0))
        moved = where(moved > 0, moved - best, moved)
        on_lattice = squared_error(x, weight, best, best_low, format_) < _LATTICE * best * best * sum_w
        best_low = where(on_lattice, moved, best_low)
    return best, best_low


def symmetric_super(x: Array, weight: Array, step: Array, format_: BlockFormat) -> Scales:
    """The scales of super-blocks from the real steps of their groups (n_groups, n_rows)."""
    xp, n_rows = namespace(step), step.shape[1]
    grouped = step.reshape(-1, format_.groups, n_rows)
    peak = taken(grouped, xp.abs(grouped).argmax(axis=1)[:, None], 1)[:, 0]
    best: Scales | None = None
    least = xp.full_like(peak, np.inf)
    for end in super_ends(format_).tolist():
        d = to_half(peak / end)
        wide = repeated(d, format_.groups)
        scales = xp.round(step * inverse(wide, wide != 0))
        scales = xp.clip(scales, format_.least_scale, format_.greatest_scale)
        scales, error = _neighbours(x, weight, wide, scales, format_)
        total = _sum(error.reshape(-1, format_.groups, n_rows))
        better = total < least
        if best is None:
            best = Scales(d, None, scales, None)
        else:
            put_where(best.d, better, d)
            put_where(best.scales, repeated(better, format_.groups), scales)
        put_where(least, better, total)
    assert best is not None
    return best


def _neighbours(x: Array, weight: Array, d: Array, scales: Array, format_: BlockFormat) -> tuple[Array, Array]:
    """The best of each integer scale and its neighbours, and the group's squared error with it."""
    xp = namespace(scales)
    best, least = copied(scales), xp.full_like(scales, np.inf)
    for change in (0.0, -1.0, 1.0):
        trial = xp.clip(scales + change, format_.least_scale, format_.greatest_scale)
        step = d * trial
        error = squared_error(x, weight, step, None, format_)
        better = error < least
        put_where(least, better, error)
        put_where(best, better, trial)
    return best, least


def squared_error(x: Array, weight: Array, step: Array, base: Array | None, format_: BlockFormat) -> Array:
    """The weighted squared error of each group: (n_groups, n_rows)."""
    shifted = x if base is None else x - base[:, None]
    difference = nearest_points(shifted * inverse(step, step != 0)[:, None], format_)
    difference *= step[:, None]
    difference -= shifted
    return _sum(weight * difference * difference)


def _sum(values: Array) -> Array:
    """The sum over the columns of each group, of numpy in their order: (n_groups, n_rows)."""
    if namespace(values) is not np:
        summed: Array = values.sum(axis=1)
        return summed
    total: Array = values[:, 0].copy()
    for column in range(1, values.shape[1]):
        total += values[:, column]
    return total


def inverse(values: Array, mask: NDArray[np.bool_]) -> Array:
    """1 / values where `mask`, and 0 elsewhere."""
    return divided(namespace(values).ones_like(values), values, mask, 0.0)


def _affine_super(x: Array, weight: Array, step: Array, low: Array, format_: BlockFormat) -> Scales:
    xp, n_rows, groups = namespace(step), step.shape[1], format_.groups
    top, top_min = float(format_.greatest_scale), float(format_.greatest_minimum)
    d = to_half(xp.amax(step.reshape(-1, groups, n_rows), 1) / top)
    dmin = to_half(xp.amax((-low).reshape(-1, groups, n_rows), 1) / top_min)
    wide, wide_min = repeated(d, groups), repeated(dmin, groups)
    scales = xp.clip(xp.round(divided(step, wide, wide > 0, 0.0)), 0.0, top)
    minima = xp.clip(xp.round(divided(-low, wide_min, wide_min > 0, 0.0)), 0.0, top_min)
    best, best_min, least = copied(scales), copied(minima), xp.full_like(scales, np.inf)
    for change in (0.0, -1.0, 1.0):
        for change_min in (0.0, -1.0, 1.0):
            trial = xp.clip(scales + change, 0.0, top)
            trial_min = xp.clip(minima + change_min, 0.0, top_min)
            error = squared_error(x, weight, wide * trial, -wide_min * trial_min, format_)
            better = error < least
            put_where(least, better, error)
            put_where(best, better, trial)
            put_where(best_min, better, trial_min)
    return Scales(d, dmin, best, best_min)
