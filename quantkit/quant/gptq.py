"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): round columns in order; later columns compensate earlier errors.

Coordinate descent over the integers and the scales then lowers the error further (see `descent`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantkit.forward.arrays import contiguous, device, empty, empty_bytes, fetch, namespace, place, to_bytes
from quantkit.quant.column_runs import RUN, round_run
from quantkit.quant.descent import Levels, descend
from quantkit.quant.factor import Factor
from quantkit.quant.grid import Array, Grid, Quantized
from quantkit.quant.rounding import best_ranges, output_error, round_to_nearest
from quantkit.workers import SERIAL, Workers, parts

SWEEPS = 2
"""Sweeps of coordinate descent. The third lowers the error by less than 1 %."""

_SHRINKS = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7)
ROUNDED_ROWS = 1024
"""Rows that are rounded in one batch on the CPU."""
_ROUNDED_ELEMENTS = 1 << 26  # weights that are rounded in one batch on another device
BLOCK = 128
"""Columns that share one matrix product with all earlier columns."""
_CHECKED_ROWS = 128  # evenly spaced rows on which the result is compared with rounding to nearest


@dataclass(frozen=True)
class _Ranges:
    """Scales and zero points, both (n_groups, n_out)."""

    scales: Array
    zeros: Array

    def put(self, groups: slice, scales: Array, zeros: Array) -> None:
        self.scales[groups], self.zeros[groups] = scales.T, zeros.T


def round_with_feedback(
    weights: Sequence[Array],
    factored: Factor,
    grid: Grid,
    *,
    static_groups: bool = True,
    sweeps: int = SWEEPS,
    workers: Workers = SERIAL,
) -> list[Quantized]:
    """Round matrices (n_out, n_in) of one input: column by column, each error fed to the columns that follow.

    static_groups: groups (i // group size), scales and zero points are fixed before rounding. Otherwise they are
        computed during rounding from the updated weights, and groups are neighbours in the order of rounding. The error
        is about the same; runtimes read static groups fastest.
    sweeps: sweeps of coordinate descent over the result; each lowers the error.
    workers: rows are rounded in parallel; the result does not depend on the number of threads.

    Arrays of numpy, or tensors of torch on one device. The matrices of the result are numpy's.

    The range of a group minimises the error weighted by R_kk^2, as in the loss of `Factor`. The columns of an input
    that is always 0 are rounded to nearest. So is a matrix whose error would be larger than that of rounding to
    nearest, by 128 of its rows.
    """
    n_in = len(factored.gram)
    if not static_groups:  # rare, and computed on the CPU only
        weights, factored = [fetch(weight) for weight in weights], factored.fetched()
    w = namespace(weights[0]).concatenate(weights)
    size, groups = grid.group_size(n_in), grid.groups(n_in)
    importance = factored.pivots**2
    sorted_gram, columns = factored.gram, np.arange(n_in)
    if not static_groups:
        columns = factored.order  # neighbours in a group are neighbours here
        groups[columns] = groups.copy()
        sorted_gram = factored.gram[np.ix_(columns, columns)]

    def round_rows(rows: slice) -> tuple[NDArray[np.uint8], Array, NDArray[np.uint8]]:
        w_slice = w[rows]
        ranges = _Ranges(empty((n_in // size, len(w_slice)), w), empty((n_in // size, len(w_slice)), w))
        if static_groups:
            ranges.put(slice(None), *best_ranges(w_slice, importance, grid, _SHRINKS))
        ordered = None if static_groups else importance[factored.order]
        q = _feed_back(w_slice, factored, ranges, groups, grid, ordered)
        scales, zeros = contiguous(ranges.scales.T), contiguous(ranges.zeros.T)
        if sweeps:
            levels = Levels(q[:, columns], scales, zeros)
            q[:, columns], scales = descend(w_slice[:, columns], levels, sorted_gram, grid, sweeps)
        return fetch(q), fetch(scales), fetch(to_bytes(zeros))

    n_rows = ROUNDED_ROWS if namespace(w) is np else max(1, _ROUNDED_ELEMENTS // n_in)
    rounded = workers.map(round_rows, list(parts(len(w), n_rows)))
    q, scales, zeros = (np.concatenate(arrays) for arrays in zip(*rounded, strict=True))
    ends = np.cumsum([len(weight) for weight in weights])[:-1]
    split = zip(np.split(q, ends), np.split(scales, ends), np.split(zeros, ends), strict=True)
    matrices = [Quantized(grid, *arrays, groups) for arrays in split]
    return [_better(*pair, factored.gram) for pair in zip(weights, matrices, strict=True)]


def _better(w: Array, quantized: Quantized, gram: Array) -> Quantized:
    """`quantized`, or w rounded to nearest if its error is smaller, by evenly spaced rows."""
    rows = slice(None, None, -(-len(w) // _CHECKED_ROWS))
    checked = fetch(w[rows])
    nearest = round_to_nearest(checked, quantized.grid).dequantized()
    rounded_rows = quantized.rows(rows).dequantized()
    there = device(w)
    of_nearest, of_rounded = (
        output_error(w[rows], place(values, there), gram)[0] for values in (nearest, rounded_rows)
    )
    return round_to_nearest(fetch(w), quantized.grid) if of_nearest < of_rounded else quantized


def _feed_back(
    w: Array,
    factored: Factor,
    ranges: _Ranges,
    groups: NDArray[np.int32],
    grid: Grid,
    importance: Array | None,
) -> NDArray[np.uint8]:
    """The integers (n_out, n_in).

    With `importance` (in `order`), `ranges` is filled group by group during rounding; otherwise it is the input.
    """
    n_out, n_in = w.shape
    order, feedback, block = factored.order, factored.feedback, BLOCK
    columns = contiguous(w.T[order])
    errors = empty((n_in, n_out), w)
    q = empty_bytes((n_in, n_out), w)
    group_of = place(groups.astype(np.int64), device(w))
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
        for first in range(start, stop, RUN):
            last = min(first + RUN, stop)
            run, at = carried[first - start : last - start], order[first:last]
            if first > start:
                run += feedback[start:first, first:last].T @ errors[start:first]
            group, own = group_of[at], feedback[first:last, first:last]
            integers, errors[first:last] = round_run(
                run, columns[first:last], own, ranges.scales[group], ranges.zeros[group], float(grid.top)
            )
            q[at] = to_bytes(integers)
    rounded: NDArray[np.uint8] = contiguous(q.T)
    return rounded
