"""Scales of GGUF blocks by weighted search: more candidates than ggml tries, and both signs.

Arrays have columns first, so that a row of a matrix is one vector lane: x is float32 (n_groups, group, n_rows). Sums
over columns are in order, so that `block_kernels.c` has the same bytes.
"""

import functools
from dataclasses import dataclass

import numpy as np

from quantkit.gguf.blocks import BlockFormat
from quantkit.quant.grid import Array

# Part of the range that the largest value of a group may use, as a factor on the scale that just covers it.
_FACTORS = np.linspace(0.62, 1.12, 18).astype(np.float32)
_MIN_FACTORS = np.linspace(0.60, 1.05, 14)
_TINY = np.float32(1e-30)


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
        step: Array = np.repeat(self.d, format_.groups, axis=0) * self.scales
        return step

    def base(self, format_: BlockFormat) -> Array | None:
        """The value of level 0: (n_groups, n_rows), or None where it is 0."""
        if self.dmin is None:
            return None
        assert self.minima is not None
        base: Array = -np.repeat(self.dmin, format_.groups, axis=0) * self.minima
        return base


def to_half(values: Array) -> Array:
    """The nearest float16 values, as float32; they are finite."""
    return np.clip(values, -65504, 65504).astype(np.float16).astype(np.float32)


def nearest_points(values: Array, format_: BlockFormat) -> Array:
    """The point nearest to each value, as a new array."""
    low, high = np.float32(format_.low), np.float32(format_.high)
    if format_.table is None:
        rounded: Array = np.rint(values)
        np.fmax(rounded, low, out=rounded)  # a value that is not a number becomes the lowest point
        np.fmin(rounded, high, out=rounded)
        return rounded
    # the middles between points are multiples of 1/2, so the half below a value decides
    halves = np.floor(np.fmin(np.fmax(values, low), high) * np.float32(2))
    points: Array = points_by_half(format_.table)[halves.astype(np.int16) - np.int16(2 * format_.low)]
    return points


@functools.cache
def points_by_half(table: tuple[int, ...]) -> Array:
    """The point nearest to each value h / 2 <= x < (h + 1) / 2; h runs between twice the ends of the table."""
    points = np.array(table, np.float32)
    inside = (np.arange(2 * table[0], 2 * table[-1] + 1, dtype=np.float32) + np.float32(0.5)) / np.float32(2)
    nearest: Array = points[np.abs(inside[:, None] - points).argmin(axis=1)]
    return nearest


def search_scales(x: Array, weight: Array, format_: BlockFormat) -> Scales:
    """The scales of x (n_cols, n_rows) with the least squared error, weighted by `weight` (n_cols,)."""
    grouped = x.reshape(-1, format_.group, x.shape[1])
    weights = np.ascontiguousarray(weight, np.float32).reshape(-1, format_.group, 1)
    affine = format_.greatest_minimum > 0
    if affine:
        step, low = _affine(grouped, weights, format_)
    else:
        step, low = _symmetric(grouped, weights, format_), None
    if not format_.has_group_scales:
        ones = np.ones_like(step)
        return Scales(to_half(step), None if low is None else to_half(-low), ones, None if low is None else ones)
    if low is None:
        return _symmetric_super(grouped, weights, step, format_)
    return _affine_super(grouped, weights, step, low, format_)


def _symmetric(x: Array, weight: Array, format_: BlockFormat) -> Array:
    """The step of each group, real: (n_groups, n_rows)."""
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)[:, 0]
    best, least = np.zeros_like(peak), np.full(peak.shape, np.inf, np.float32)
    wx = weight * x
    for ratio in candidates(format_):
        step, gain = _fitted(x, weight, wx, peak * ratio, format_)
        better = -gain < least
        np.copyto(least, -gain, where=better)
        np.copyto(best, step, where=better)
    return _fitted(x, weight, wx, best, format_)[0]


def _fitted(x: Array, weight: Array, wx: Array, step: Array, format_: BlockFormat) -> tuple[Array, Array]:
    """The least-squares step for the points that `step` gives, and by how much it lowers the squared error."""
    inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step != 0)
    points = nearest_points(x * inverse[:, None], format_)
    dot = _sum(wx * points)
    norm = _sum(weight * points * points)
    fitted = np.divide(dot, norm, out=np.zeros_like(dot), where=norm > _TINY)
    return fitted, fitted * dot


def candidates(format_: BlockFormat) -> Array:
    """The steps that the search tries: float32 (n,), or (n, 2) for a type with minima.

    Without minima: factors on the value of a group with the largest magnitude. With minima: factors on the step that
    just covers a group, and the part of its range that is cut at the low end. With a factor top / k the ends are k
    levels apart: weights that lie on a lattice of that step are met exactly.
    """
    if format_.greatest_minimum == 0:
        ends = np.repeat(np.array([format_.low, format_.high], np.float32), len(_FACTORS))
        return np.tile(_FACTORS, 2) / ends
    top = format_.high
    cuts = [(top / k, 0.0) for k in range(top, top // 2, -1)]
    cuts += [(factor, (1 - factor) * shift) for factor in _MIN_FACTORS for shift in (0.0, 0.5, 1.0)]
    return np.array(cuts, np.float32)


def super_ends(format_: BlockFormat) -> Array:
    """The integer scales that the group with the largest step of a super-block may get: float32 (n,)."""
    return np.array([format_.least_scale, format_.greatest_scale], np.float32)


def _affine(x: Array, weight: Array, format_: BlockFormat) -> tuple[Array, Array]:
    """The step and the lowest value of each group, both real: (n_groups, n_rows)."""
    bounded = format_.has_group_scales  # their minima are not positive
    low, high = x.min(axis=1), x.max(axis=1)
    if bounded:
        np.minimum(low, 0, out=low)
    full = (high - low) / np.float32(format_.high)
    sum_w = np.broadcast_to(_sum(weight), low.shape)
    sum_x = _sum(weight * x)
    best, best_low, least = full.copy(), low.copy(), np.full(low.shape, np.inf, np.float32)
    for factor, cut in candidates(format_):
        step = full * factor
        start = low + cut * (high - low)
        inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step > 0)
        points = nearest_points((x - start[:, None]) * inverse[:, None], format_)
        wp = weight * points
        sum_p, sum_pp, sum_xp = _sum(wp), _sum(wp * points), _sum(wp * x)
        det = sum_w * sum_pp - sum_p * sum_p
        good = det > 1e-6 * sum_w * sum_pp
        inv = np.divide(np.float32(1), det, out=np.zeros_like(det), where=good)
        fit = np.where(good, (sum_w * sum_xp - sum_x * sum_p) * inv, step)
        fit_low = np.where(good, (sum_pp * sum_x - sum_p * sum_xp) * inv, start)
        if bounded:
            above = fit_low > 0
            alone = np.divide(sum_xp, sum_pp, out=np.zeros_like(step), where=sum_pp > _TINY)
            fit, fit_low = np.where(above, alone, fit), np.where(above, np.float32(0), fit_low)
        error = (
            fit * fit * sum_pp + 2 * fit * fit_low * sum_p + fit_low * fit_low * sum_w
            - 2 * fit * sum_xp - 2 * fit_low * sum_x
        )  # fmt: skip
        better = (error < least) & (fit >= 0)
        np.copyto(least, error, where=better)
        np.copyto(best, fit, where=better)
        np.copyto(best_low, fit_low, where=better)
    return best, best_low


def _symmetric_super(x: Array, weight: Array, step: Array, format_: BlockFormat) -> Scales:
    n_rows = step.shape[1]
    grouped = step.reshape(-1, format_.groups, n_rows)
    peak = np.take_along_axis(grouped, np.abs(grouped).argmax(axis=1)[:, None], axis=1)[:, 0]
    best: Scales | None = None
    least = np.full(peak.shape, np.inf, np.float32)
    for end in super_ends(format_):
        d = to_half(peak / end)
        wide = np.repeat(d, format_.groups, axis=0)
        inverse = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide != 0)
        scales = np.clip(np.rint(step * inverse), format_.least_scale, format_.greatest_scale)
        scales, error = _neighbours(x, weight, wide, scales, format_)
        total = _sum(error.reshape(-1, format_.groups, n_rows))
        better = total < least
        if best is None:
            best = Scales(d, None, scales, None)
        else:
            np.copyto(best.d, d, where=better)
            np.copyto(best.scales, scales, where=np.repeat(better, format_.groups, axis=0))
        np.copyto(least, total, where=better)
    assert best is not None
    return best


def _neighbours(x: Array, weight: Array, d: Array, scales: Array, format_: BlockFormat) -> tuple[Array, Array]:
    """The best of each integer scale and its neighbours, and the group's squared error with it."""
    best, least = scales.copy(), np.full(scales.shape, np.inf, np.float32)
    for change in (0, -1, 1):
        trial = np.clip(scales + np.float32(change), format_.least_scale, format_.greatest_scale)
        step = d * trial
        error = _error(x, weight, step, None, format_)
        better = error < least
        np.copyto(least, error, where=better)
        np.copyto(best, trial, where=better)
    return best, least


def _error(x: Array, weight: Array, step: Array, base: Array | None, format_: BlockFormat) -> Array:
    """The weighted squared error of each group: (n_groups, n_rows)."""
    inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step != 0)
    shifted = x if base is None else x - base[:, None]
    difference = nearest_points(shifted * inverse[:, None], format_)
    difference *= step[:, None]
    difference -= shifted
    return _sum(weight * difference * difference)


def _sum(values: Array) -> Array:
    """The sum over the columns of each group, in their order: (n_groups, n_rows)."""
    total: Array = values[:, 0].copy()
    for column in range(1, values.shape[1]):
        total += values[:, column]
    return total


def _affine_super(x: Array, weight: Array, step: Array, low: Array, format_: BlockFormat) -> Scales:
    n_rows, groups = step.shape[1], format_.groups
    top, top_min = np.float32(format_.greatest_scale), np.float32(format_.greatest_minimum)
    d = to_half(step.reshape(-1, groups, n_rows).max(axis=1) / top)
    dmin = to_half((-low).reshape(-1, groups, n_rows).max(axis=1) / top_min)
    wide, wide_min = np.repeat(d, groups, axis=0), np.repeat(dmin, groups, axis=0)
    scales = np.divide(step, wide, out=np.zeros_like(step), where=wide > 0)
    minima = np.divide(-low, wide_min, out=np.zeros_like(step), where=wide_min > 0)
    scales, minima = np.clip(np.rint(scales), 0, top), np.clip(np.rint(minima), 0, top_min)
    best, best_min, least = scales.copy(), minima.copy(), np.full(scales.shape, np.inf, np.float32)
    for change in (0, -1, 1):
        for change_min in (0, -1, 1):
            trial = np.clip(scales + np.float32(change), 0, top)
            trial_min = np.clip(minima + np.float32(change_min), 0, top_min)
            error = _error(x, weight, wide * trial, -wide_min * trial_min, format_)
            better = error < least
            np.copyto(least, error, where=better)
            np.copyto(best, trial, where=better)
            np.copyto(best_min, trial_min, where=better)
    return Scales(d, dmin, best, best_min)
