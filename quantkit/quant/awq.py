"""AWQ (Lin et al. 2023, arXiv 2306.00978) with error feedback: scale input channels, clip ranges, round as GPTQ.

Scaling a weight column by s and its input by 1/s leaves the output unchanged. After rounding, channels with a large s
have a smaller relative error. AWQ's format leaves the rounding open. So integers are rounded with error feedback, and
scales and ranges are searched for that rounding. The paper's own rounding is in `awq_nearest`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantkit.forward.arrays import device, fetch, namespace, place, total
from quantkit.quant.factor import Factor
from quantkit.quant.gptq import round_with_feedback
from quantkit.quant.grid import Array, Grid
from quantkit.quant.rounding import group_ranges, in_groups, nearest, output_error, scales_and_zeros
from quantkit.workers import SERIAL, Workers

_LEAST = np.float32(1e-4)
_STEPS = 16  # steps of a power from 0 to 1
_SEARCHED_ROWS, _SEARCHED_WEIGHTS = 512, 1 << 21
_CHECKED_ROWS = 128
_SHRINKS = (1.0, 0.88)


@dataclass(frozen=True)
class Scale:
    """The scale of an input.

    values: float32 (n_in,); all 1 if no scale has a smaller error.
    error_before, error_after: tr(dW H dW') without and with the scale, H damped, over some rows of all linears.
    powers: of the pivots and of the weights in the scale.
    """

    values: Array
    error_before: float
    error_after: float
    powers: tuple[float, float]


def search_scale(
    weights: Sequence[Array],
    factored: Factor,
    grid: Grid,
    *,
    ties: NDArray[np.integer] | None = None,
    workers: Workers = SERIAL,
) -> Scale:
    """Search the channel scale of an input that minimises the error of its linears after rounding with feedback.

    weights: float32 (n_out, n_in) of each linear.
    ties: (n_in,); channels with the same number share a scale.

    The candidates are p^a / u^b with a and b from 0 to 1. p are the pivots R_kk: the root mean square of what a channel
    adds to the channels rounded after it. u is the root mean square of the channel's weights. A candidate's error is
    sum_k R_kk^2 d_k^2 with d the error of rounding to nearest: that of feedback has the same size at every column.
    The best candidate is kept if it lowers the error of rounding with feedback.
    """
    n_in, there = len(factored.pivots), device(factored.pivots)
    rows = min(_SEARCHED_ROWS, max(_CHECKED_ROWS, _SEARCHED_WEIGHTS // n_in))
    searched = _spread(weights, rows)
    importance = factored.pivots**2
    squares = np.sum([fetch(namespace(w).einsum("oi,oi->i", w, w)) for w in weights], axis=0)
    pivots, size = _relative(_tied(fetch(importance), ties, n_in)), _relative(_tied(squares, ties, n_in))

    def scale_of(powers: tuple[int, int]) -> Array:
        of_pivots, of_size = (np.float32(power / _STEPS) for power in powers)
        return _centred(pivots**of_pivots / size**of_size)

    def error_of(powers: tuple[int, int]) -> float:
        return _weighted_error(searched, importance, grid, place(scale_of(powers), there))

    errors: dict[tuple[int, int], float] = {}
    for step in (4, 2, 1):  # from coarse to fine around the best
        candidates = _candidates(errors, step)
        errors |= zip(candidates, workers.map(error_of, candidates), strict=True)
    best = min(errors, key=errors.__getitem__)
    checked = _spread(weights, _CHECKED_ROWS)
    ones = np.ones(n_in, np.float32)
    before = _feedback_error(checked, factored, grid, ones, workers)
    after = _feedback_error(checked, factored, grid, scale_of(best), workers) if any(best) else before
    if not after < before:
        return Scale(ones, before, before, (0.0, 0.0))
    return Scale(scale_of(best), before, after, (best[0] / _STEPS, best[1] / _STEPS))


def _candidates(tried: dict[tuple[int, int], float], step: int) -> list[tuple[int, int]]:
    """The powers to try next, in steps: a grid first, then the neighbours of the best."""
    if not tried:
        steps = range(0, _STEPS + 1, step)
        return [(a, b) for a in steps for b in steps]
    a, b = min(tried, key=tried.__getitem__)
    around = [(a + i, b + j) for i in (-step, 0, step) for j in (-step, 0, step)]
    return [pair for pair in around if pair not in tried and min(pair) >= 0 and max(pair) <= _STEPS]


def _weighted_error(w: Array, importance: Array, grid: Grid, s: Array) -> float:
    """The error of w s rounded to nearest, over s, squared and weighted; each group at the better of two ranges."""
    scaled = w * s
    grouped, weight = in_groups(scaled, grid), in_groups((importance / (s * s))[None], grid)[0]
    low, high = group_ranges(scaled, grid)
    xp, least = namespace(low), namespace(low).full_like(low, np.inf)
    for shrink in _SHRINKS:
        difference = nearest(grouped, *scales_and_zeros(low * shrink, high * shrink, grid), grid)
        difference -= grouped
        xp.square(difference, out=difference)
        xp.minimum(least, xp.einsum("ogi,gi->og", difference, weight), out=least)
    return total(least)


def _feedback_error(w: Array, factored: Factor, grid: Grid, s: Array, workers: Workers) -> float:
    """tr(dW H dW') of w s rounded with feedback, over s."""
    there = device(w)
    scaled = w * place(s, there)
    (quantized,) = round_with_feedback([scaled], factored.scaled(s), grid, sweeps=0, workers=workers)
    return output_error(w, place(quantized.dequantized() / s, there), factored.gram)[0]


def _spread(weights: Sequence[Array], rows: int) -> Array:
    """At most `rows` evenly spaced rows of all matrices."""
    step = -(-sum(len(w) for w in weights) // rows)
    rows_of_all: Array = namespace(weights[0]).concatenate([w[::step] for w in weights])
    return rows_of_all


def _tied(squares: Array, ties: NDArray[np.integer] | None, n_in: int) -> Array:
    """For each channel, the mean of `squares` over the channels that share its scale."""
    if ties is None:
        return squares
    sums = np.bincount(ties, squares, minlength=n_in)
    means: Array = (sums / np.maximum(np.bincount(ties, minlength=n_in), 1))[ties].astype(np.float32)
    return means


def _relative(squares: Array) -> Array:
    """Square roots over their mean, never 0."""
    roots = np.sqrt(squares)
    return np.asarray(np.maximum(roots / max(float(roots.mean()), 1e-30), _LEAST), np.float32)


def _centred(s: Array) -> Array:
    s = np.maximum(s, _LEAST)
    return np.asarray(s / np.sqrt(s.max() * s.min()), np.float32)
