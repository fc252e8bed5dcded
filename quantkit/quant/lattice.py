"""Scales of GGUF blocks for weights that were rounded before, and lie on a lattice of few levels in each group.

Weights of one group of 32 columns that were rounded to 4 bits have the values

    w = d q + m,   q in 0, 1, ..., 15

Types with float16 minima hold them exactly (Q4_1, Q5_1). Others come near with the right scale:

1. Without minima, a step d / n leaves the same error for the whole group: the distance of m from a multiple of the
   step. Q8_0 and Q5_0 take the best of n = 1, 2, ...; the search for Q6_K tries larger steps than for other weights.
2. With integer scales and minima (Q4_K, Q5_K), d and m are rounded to multiples of the block's own two steps. The best
   of several pairs of these is taken. In Q5_K, half of the levels are free, so m may fall by any whole number of d too.

A block keeps the usual scales of `block_search` if these have a smaller error. Tensors of torch are fetched for this.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.forward.arrays import device, fetch, place
from quantkit.gguf.blocks import BlockFormat
from quantkit.quant import block_search
from quantkit.quant.block_kernels import Steps
from quantkit.quant.block_search import Scales, inverse, to_half
from quantkit.quant.grid import Array

GROUP = 32
"""Columns of the groups that are looked for."""
_SAMPLED_ROWS, _MOST_DIFFERENT = 64, 24
_LEVELS = 31
"""The lattice is searched with so many steps between its ends: one of 5 bits, or of 4 bits by half steps."""
_FEWEST_LEVELS = 15
"""Types with fewer levels cannot hold a lattice of 4 bits at any offset."""
_PARTS, _TRIED = 20, 4
"""The largest n of a step d / n, and how many of these steps are tried."""
# Steps of a block, as factors on the smallest possible one. Larger steps round more coarsely.
_STEPS, _MINIMA = np.linspace(1, 1.4, 41), np.geomspace(0.95, 2.2, 26)


def lies_on_lattice(weight: Array) -> bool:
    """Whether groups of 32 weights of a row (n_out, n_in) have few different values: they were rounded before.

    Groups of continuous weights have about 31 different values in bf16, those of 4 bits at most 16, of 5 bits about 20.
    """
    sample = weight[:: max(1, len(weight) // _SAMPLED_ROWS), : weight.shape[1] // GROUP * GROUP]
    ordered = np.sort(sample.reshape(-1, GROUP), axis=1)
    different = 1 + np.count_nonzero(np.diff(ordered, axis=1), axis=1)
    return bool(different.mean() < _MOST_DIFFERENT)


def search_scales(w: Array, weight: Array, format_: BlockFormat, by: Steps) -> Scales:
    """The scales of w (n_in, n_rows), weighted by `weight` (n_in,); of a lattice where w lies on one."""
    usual = by.search_scales(w, weight, format_)
    if format_.high < _FEWEST_LEVELS or format_.table is not None or format_.greatest_minimum == 1:
        return usual
    if not lies_on_lattice(fetch(w[:, :: max(1, w.shape[1] // _SAMPLED_ROWS)]).T):
        return usual
    if format_.greatest_minimum == 0 and format_.has_group_scales:
        return by.search_scales(w, weight, replace(format_, coarse=True))
    x: Array = fetch(w).reshape(-1, format_.group, w.shape[1])
    of_group = fetch(weight).reshape(-1, format_.group, 1)
    levels, step, low = _lattice(x, w, weight, format_, by)
    if format_.greatest_minimum > 0:
        made = _with_minima(x, of_group, levels, step, format_)
    else:
        made = _without_minima(x, of_group, levels, step, low, format_)
    kept = _fetched(usual)
    better = _error(x, of_group, made, format_) < _error(x, of_group, kept, format_)
    return _chosen(better, made, kept, format_, device(w))


def _chosen(better: NDArray[np.bool_], made: Scales, kept: Scales, format_: BlockFormat, to: Any) -> Scales:
    """The scales `made` of the blocks that are `better` (n_blocks, n_rows), and the scales `kept` of the others."""
    of_groups = np.repeat(better, format_.groups, axis=0)

    def chosen(mask: NDArray[np.bool_], one: Array | None, other: Array | None) -> Any:
        return None if one is None or other is None else place(np.where(mask, one, other), to)

    return Scales(
        chosen(better, made.d, kept.d),
        chosen(better, made.dmin, kept.dmin),
        chosen(of_groups, made.scales, kept.scales),
        chosen(of_groups, made.minima, kept.minima),
    )


def _fetched(scales: Scales) -> Scales:
    parts = (scales.d, scales.dmin, scales.scales, scales.minima)
    d, dmin, of_groups, minima = (None if part is None else fetch(part) for part in parts)
    assert d is not None and of_groups is not None
    return Scales(d, dmin, of_groups, minima)


def _error(x: Array, weight: Array, scales: Scales, format_: BlockFormat) -> Array:
    """The weighted squared error of each block: (n_blocks, n_rows)."""
    of_groups = block_search.squared_error(x, weight, scales.step(format_), scales.base(format_), format_)
    error: Array = of_groups.reshape(-1, format_.groups, of_groups.shape[1]).sum(axis=1)
    return error


def _lattice(x: Array, w: Array, weight: Array, format_: BlockFormat, by: Steps) -> tuple[Array, Array, Array]:
    """The levels (n_groups, group, n_rows), from 0, the step and the lowest value of the lattice of each group."""
    plain = replace(format_, groups=1, low=0, high=_LEVELS, least_scale=1, greatest_scale=1, greatest_minimum=1)
    fitted = _fetched(by.search_scales(w, weight, plain))
    assert fitted.dmin is not None
    step, low = fitted.d, -fitted.dmin
    levels: Array = np.clip(np.rint((x - low[:, None]) * inverse(step, step > 0)[:, None]), 0, _LEVELS)
    lowest = levels.min(axis=1)
    levels -= lowest[:, None]
    halves = (levels % 2 == 0).all(axis=1)
    levels[:] = np.where(halves[:, None], levels / 2, levels)
    return levels, np.where(halves, 2 * step, step), low + lowest * step


def _without_minima(x: Array, weight: Array, levels: Array, step: Array, low: Array, format_: BlockFormat) -> Scales:
    """The scales of a type with one float16 scale: the step of the lattice over a whole number."""
    offset = low * inverse(step, step > 0)
    parts = np.arange(1, _PARTS + 1, dtype=np.float32)[:, None, None]
    lowest = np.rint(parts * offset)
    distance = np.abs(parts * offset - lowest) / parts
    ends = np.maximum(-lowest, lowest + parts * levels.max(axis=1))
    distance += np.maximum(ends - format_.high - 1, 0)  # levels that the type does not have
    nearest = np.argpartition(distance, _TRIED, axis=0)[:_TRIED] + 1
    wx = weight * x
    best, most = np.zeros_like(step), np.full_like(step, -np.inf)
    for n in nearest.astype(np.float32):
        fitted, gain = block_search.fitted(x, weight, wx, step / n, format_)
        best, most = np.where(gain > most, fitted, best), np.where(gain > most, gain, most)
    return Scales(to_half(best), None, np.ones_like(best), None)


def _with_minima(x: Array, weight: Array, levels: Array, step: Array, format_: BlockFormat) -> Scales:
    """The scales of a type whose blocks have integer scales and minima."""
    groups, n_rows = format_.groups, step.shape[1]
    top, top_minimum = format_.greatest_scale, format_.greatest_minimum
    total = weight.sum(axis=1)
    mean_level, mean = (weight * levels).sum(axis=1) / total, (weight * x).sum(axis=1) / total
    spread = (weight * levels * levels).sum(axis=1) - total * mean_level * mean_level
    room = format_.high - levels.max(axis=1)

    def of_blocks(values: Array) -> Array:
        return values.reshape(-1, groups, n_rows)

    def wide(values: Array) -> Array:
        return np.repeat(values, groups, axis=0)

    # the scales: an error e of a step costs e^2 times the levels' spread
    largest = of_blocks(step).max(axis=1)
    d, least = np.zeros_like(largest), np.full_like(largest, np.inf)
    for factor in _STEPS:
        trial = to_half((largest * (factor / top)).astype(np.float32))
        rounded = _rounded(step, wide(trial), top)
        error = of_blocks(np.square(step - rounded * wide(trial)) * spread).sum(axis=1)
        better = error < least
        d, least = np.where(better, trial, d), np.where(better, error, least)
    scales = _rounded(step, wide(d), top)
    step = scales * wide(d)
    # the minima: the best one for these steps keeps the group's mean
    wanted = step * mean_level - mean
    largest = np.maximum(of_blocks(wanted).max(axis=1), 0)
    dmin, least = np.zeros_like(largest), np.full_like(largest, np.inf)
    minima = np.zeros_like(step)
    shifts = np.arange(format_.high // 2 + 2, dtype=np.float32)
    for factor in _MINIMA:
        trial = to_half((largest * (factor / top_minimum)).astype(np.float32))
        each, of_each = np.zeros_like(step), np.full_like(step, np.inf)
        for shift in shifts:
            target = wanted + shift * step
            rounded = _rounded(target, wide(trial), top_minimum)
            error = np.where(shift <= room, np.square(target - rounded * wide(trial)), np.inf)
            better = error < of_each
            each, of_each = np.where(better, rounded, each), np.where(better, error, of_each)
        error = of_blocks(of_each * total).sum(axis=1)
        better = error < least
        dmin, least = np.where(better, trial, dmin), np.where(better, error, least)
        minima = np.where(wide(better), each, minima)
    return Scales(d, dmin, scales, minima)


def _rounded(values: Array, unit: Array, top: int) -> Array:
    rounded: Array = np.clip(np.rint(values * inverse(unit, unit > 0)), 0, top)
    return rounded
