"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): round columns in order; later columns compensate earlier errors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CalibrationError
from quantkit.quant.grid import Array, Grid, Quantized
from quantkit.quant.rounding import best_ranges
from quantkit.workers import SERIAL, Workers, parts

_SHRINKS = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7)
_MOST_DAMP = 1.0
_RUN = 16  # columns of a block whose errors are fed back one by one
_ROWS = 1024  # rows that are rounded in one batch
_TILE = 1024  # tile size of the blocked factorisation, which is used for more than two tiles


@dataclass(frozen=True)
class Solution:
    """The quantized matrices of one gptq call, in order, and the damping used."""

    matrices: list[Quantized]
    damp: float


@dataclass(frozen=True)
class _Ranges:
    """Scales and zero points, both (n_groups, n_out)."""

    scales: Array
    zeros: Array

    def put(self, groups: slice, scales: Array, zeros: Array) -> None:
        self.scales[groups], self.zeros[groups] = scales.T, zeros.T


def gptq(
    weights: Sequence[Array],
    gram: Array,
    count: int,
    grid: Grid,
    *,
    damp: float = 0.01,
    act_order: bool = True,
    static_groups: bool = True,
    block: int = 128,
    name: str = "the input",
    workers: Workers = SERIAL,
) -> Solution:
    """Quantize matrices (n_out, n_in) that see the same input so that the outputs over the calibration text stay close.

    gram: float32 (n_in, n_in), H, the sum of x x' over `count` tokens.
    damp: this fraction of H's mean diagonal is added to the diagonal. If the factorisation fails, the fraction is
        increased tenfold, up to 1.
    act_order: columns are rounded in the order of decreasing diagonal of H.
    static_groups: groups (i // group size), scales and zero points are fixed before rounding. Otherwise they are
        computed during rounding from the updated weights, and groups are neighbours in act_order's order. The error is
        about the same; runtimes read static groups fastest.
    block: the number of columns that share one matrix product with all earlier columns.
    name: the name of the input in messages.
    workers: rows are rounded in parallel; the result does not depend on the number of threads.

    The range of a group minimises the error weighted by R_kk^2 below, as in the loss. The columns of an input that is
    always 0 are rounded to nearest.

    The LDL form is used (Chee et al. 2023, arXiv 2307.13304, show that it equals the paper's). With H = R R', R upper
    triangular, the loss is

        sum_k R_kk^2 (e_k + sum_{j<k} e_j R_jk / R_kk)^2

    so column k rounds w_k + sum_{j<k} e_j R_jk / R_kk. This needs no inverse.

    Raises:
        CalibrationError: no token, statistics that are not finite, or no factorisation at any damping.
    """
    n_in = len(gram)
    order, factor, damp = factor_gram(gram, count, damp=damp, act_order=act_order, name=name, workers=workers)
    pivots = np.diagonal(factor).copy()
    importance = pivots * pivots
    feedback = np.triu(factor / pivots, 1)

    w = np.concatenate(weights)
    size = grid.group_size(n_in)
    groups = grid.groups(n_in)
    natural = np.empty(n_in, np.float32)
    natural[order] = importance
    if not static_groups:
        groups[order] = groups.copy()

    def round_rows(rows: slice) -> tuple[NDArray[np.uint8], _Ranges]:
        own = w[rows]
        ranges = _Ranges(np.empty((n_in // size, len(own)), np.float32), np.empty((n_in // size, len(own)), np.float32))
        if static_groups:
            ranges.put(slice(None), *best_ranges(own, natural, grid, _SHRINKS))
        return _feed_back(
            own, order, feedback, ranges, groups, grid, block, None if static_groups else importance
        ), ranges

    rounded = workers.map(round_rows, list(parts(len(w), _ROWS)))
    q = np.concatenate([own for own, _ in rounded])
    scales = np.concatenate([ranges.scales.T for _, ranges in rounded])
    zeros = np.concatenate([ranges.zeros.T for _, ranges in rounded]).astype(np.uint8)
    ends = np.cumsum([len(weight) for weight in weights])[:-1]
    split = zip(np.split(q, ends), np.split(scales, ends), np.split(zeros, ends), strict=True)
    return Solution([Quantized(grid, *parts, groups) for parts in split], damp)


def factor_gram(
    gram: Array, count: int, *, damp: float, act_order: bool, name: str, workers: Workers
) -> tuple[NDArray[np.intp], Array, float]:
    """The order of the columns, the factor R of the damped H in that order, and the damping; see `gptq`.

    Raises:
        CalibrationError: no token, statistics that are not finite, or no factorisation at any damping.
    """
    if count < 1:
        raise CalibrationError(f"no token of the calibration text reached {name}; calibrate on a longer text")
    if not np.isfinite(gram).all():
        raise CalibrationError(f"the activations of the calibration text are not finite in {name}; check the model")
    order = np.argsort(-np.diagonal(gram), kind="stable") if act_order else np.arange(len(gram))
    return order, *_factor(gram[np.ix_(order, order)], damp, name, workers)


def _factor(gram: Array, damp: float, name: str, workers: Workers) -> tuple[Array, float]:
    """R, upper triangular, with R R' = damped gram; and the damping.

    In float32, the type of `gram`. On a real model the errors equal those in float64 to four figures.
    """
    flipped = np.ascontiguousarray(gram[::-1, ::-1])
    diagonal = np.diagonal(flipped).copy()
    mean = float(diagonal.mean(dtype=np.float64))
    if mean <= 0:
        raise CalibrationError(f"{name} is zero for the whole calibration text; calibrate on another text")
    diagonal[diagonal <= 0] = mean  # an input that is always 0 does not affect other columns
    while True:
        np.fill_diagonal(flipped, diagonal + np.float32(damp * mean))
        try:
            return np.asarray(cholesky(flipped, workers)[::-1, ::-1], np.float32), damp
        except np.linalg.LinAlgError:
            if damp >= _MOST_DAMP:
                raise CalibrationError(
                    f"the calibration statistics of {name} cannot be factored, even with a damping of {damp:g}; "
                    "calibrate on a longer text"
                ) from None
            damp = min(_MOST_DAMP, max(0.001, 10 * damp))


def cholesky(matrix: Array, workers: Workers = SERIAL) -> Array:
    """L, lower triangular, with L L' = matrix (n, n), a symmetric positive definite matrix.

    A matrix of more than 2048 rows is factored in tiles of 1024, right-looking: factor a diagonal tile, solve the tiles
    below it, update the rest. Raises numpy.linalg.LinAlgError when the matrix is not positive definite.
    """
    if len(matrix) <= 2 * _TILE:
        return np.asarray(np.linalg.cholesky(matrix), matrix.dtype)
    work = np.tril(matrix)
    tiles = list(parts(len(work), _TILE))
    for number, here in enumerate(tiles):
        work[here, here] = np.linalg.cholesky(work[here, here])
        below = tiles[number + 1 :]

        def solve(tile: slice, here: slice = here) -> None:
            # L_ih L_hh' = A_ih
            work[tile, here] = np.linalg.solve(work[here, here], work[tile, here].T).T

        def update(pair: tuple[slice, slice], here: slice = here) -> None:
            row, column = pair
            work[row, column] -= work[row, here] @ work[column, here].T

        workers.map(solve, below)
        workers.map(update, [(row, column) for i, row in enumerate(below) for column in below[: i + 1]])
    return np.tril(work)


def _feed_back(
    w: Array,
    order: NDArray[np.intp],
    feedback: Array,
    ranges: _Ranges,
    groups: NDArray[np.int32],
    grid: Grid,
    block: int,
    importance: Array | None,
) -> NDArray[np.uint8]:
    """The integers (n_out, n_in). Columns are rounded in `order`; `feedback` weights the errors of earlier columns.

    With `importance` (in `order`), `ranges` is filled group by group during rounding; otherwise it is the input.
    """
    n_out, n_in = w.shape
    columns = np.ascontiguousarray(w.T[order])
    errors = np.empty_like(columns)
    q = np.empty((n_in, n_out), np.uint8)
    value = np.empty(n_out, np.float32)
    if importance is not None:
        block = grid.group_size(n_in)
    for start in range(0, n_in, block):
        stop = min(start + block, n_in)
        carried = feedback[:start, start:stop].T @ errors[:start]
        if importance is not None:
            # The updated weights of the paper: each column also compensates the errors of earlier columns in its group.
            within = feedback[start:stop, start:stop].T + np.eye(stop - start, dtype=np.float32)
            updated = columns[start:stop] + np.linalg.solve(within, carried)
            whole = replace(grid, group=-1)
            group_range = best_ranges(np.ascontiguousarray(updated.T), importance[start:stop], whole, _SHRINKS)
            ranges.put(slice(start // block, start // block + 1), *group_range)
        carried += columns[start:stop]
        for first in range(start, stop, _RUN):
            last = min(first + _RUN, stop)
            run = carried[first - start : last - start]
            if first > start:
                run += feedback[start:first, first:last].T @ errors[start:first]
            for k in range(first, last):
                target, group = run[k - first], groups[order[k]]
                if k > first:
                    target += feedback[first:k, k] @ errors[first:k]
                scale, zero = ranges.scales[group], ranges.zeros[group]
                np.divide(target, scale, out=value)
                np.rint(value, out=value)
                value += zero
                np.clip(value, np.float32(0), np.float32(grid.top), out=value)
                q[order[k]] = value
                value -= zero
                value *= scale
                np.subtract(columns[k], value, out=errors[k])
    return np.ascontiguousarray(q.T)
