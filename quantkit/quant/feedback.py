"""Rounding of a matrix to a GGUF type with error feedback, and descent over its scales and levels.

The output error of rounding W (n_out, n_in) to W + E is tr(E H E'), H = X X' over the tokens. Four steps lower it:

1. scales by a weighted search (`block_search`), with the squared pivots of H's factor as weights;
2. with these scales fixed, GPTQ's error feedback over all columns (arXiv 2210.17323, in the form of `gptq.py`);
3. for every block, the scales refitted to the levels by least squares in H;
4. coordinate descent: each level moves to the nearest of its best value, all others fixed.

Steps 3 and 4 alternate, block by block, in sweeps. No move raises the error.

Arrays are numpy's, or tensors of torch on one device. There the sums are in another order, so the bytes differ.
"""

from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.forward.arrays import (
    contiguous,
    copied,
    empty,
    fetch,
    mean,
    namespace,
    repeated,
    set_diagonal,
    to_small_integers,
)
from quantkit.gguf.blocks import FORMATS, BlockFormat, Blocks, pack_blocks
from quantkit.quant.block_kernels import Steps, steps
from quantkit.quant.block_search import Scales
from quantkit.quant.block_steps import Fit, GroupLevels, Run
from quantkit.quant.block_tensors import TENSORS
from quantkit.quant.factor import SHRINK, factor_gram, shrunk
from quantkit.quant.grid import Array
from quantkit.quant.lattice import search_scales
from quantkit.workers import SERIAL, Workers, parts

DAMP = 0.01
SOLVER_VERSION = 16
"""Raised when the bytes change, so that an unfinished run is not continued with other bytes."""
SWEEPS, BEST_SWEEPS = 3, 5
"""Sweeps after the feedback: the usual number, with 0.4 % less error than two (Q4_K 2 %) and 0.1 to 0.9 % more than
four; and the best, after which three more lower no divergence of stories15M (q4_0, q4_k_m)."""
_ROWS = 256  # rows that are rounded in one batch
_CHUNK = 128  # columns that share one matrix product with all others
_RUN = 16  # columns of a chunk that are rounded by one call
_ELEMENTS = 1 << 25  # weights that are rounded in one batch on a device of torch


@dataclass(frozen=True)
class Curvature:
    """H of one input, prepared for rounding.

    `hessian`: the damped H, float32 (n_in, n_in). `order`: the order of the columns in the feedback. `feedback`: the
    weights of earlier errors, in that order. `importance`: squared pivots, (n_in,) in stored order. `damp`: as used.
    """

    hessian: Array
    order: NDArray[np.intp]
    feedback: Array
    importance: Array
    damp: float


def curvature(
    gram: Array,
    count: int,
    *,
    damp: float = DAMP,
    shrink: float = SHRINK,
    name: str = "the input",
    workers: Workers = SERIAL,
) -> Curvature:
    """Damp and factor H = `gram`, the sum of x x' over `count` tokens.

    shrink: this fraction of each diagonal entry is added to it, so that correlations count for less: those of another
        kind of text differ. damp: this fraction of the mean diagonal is added, as in `gptq`.

    Raises CalibrationError as `gptq` does.
    """
    hessian = shrunk(gram, shrink)
    order, factor, damp = factor_gram(hessian, count, damp=damp, act_order=True, name=name, workers=workers)
    pivots = copied(factor.diagonal())
    importance = empty((len(pivots),), pivots)
    importance[order] = pivots * pivots
    set_diagonal(hessian, hessian.diagonal() + float(np.float32(damp * mean(hessian.diagonal()))))
    factor /= pivots
    return Curvature(hessian, order, namespace(factor).triu(factor, 1), importance, damp)


def quantize_with_feedback(
    kind: GGMLQuantizationType,
    weight: Array,
    curvature: Curvature,
    *,
    sweeps: int = SWEEPS,
    workers: Workers = SERIAL,
) -> NDArray[np.uint8]:
    """The bytes of `weight`, float32 (n_out, n_in), in `kind`: numpy's uint8 (n_out, row_bytes).

    A tensor is rounded at once: `rows_at_once` limits its memory.
    """
    if namespace(weight) is not np:
        blocks = as_blocks(solve(FORMATS[kind], contiguous(weight.T), curvature, sweeps=sweeps))
        packed = workers.map(lambda rows: pack_blocks(kind, blocks.rows(rows)), list(parts(len(weight), _ROWS)))
        return np.concatenate(packed)

    def some(rows: slice) -> NDArray[np.uint8]:
        return pack_blocks(kind, as_blocks(solve(FORMATS[kind], contiguous(weight[rows].T), curvature, sweeps=sweeps)))

    return np.concatenate(workers.map(some, list(parts(len(weight), _ROWS))))


def working_memory(n_in: int, threads: int) -> int:
    """Bytes of the rows of `n_in` weights that are rounded at once: about ten arrays of float32."""
    return threads * _ROWS * n_in * 4 * 10


@dataclass
class Solution:
    """Scales and points (n_in, n_rows)."""

    scales: Scales
    points: Array


def rows_at_once(n_in: int) -> int:
    """Rows of `n_in` weights that are rounded in one batch on a device of torch."""
    return max(1, _ELEMENTS // n_in)


def as_blocks(solution: Solution) -> Blocks:
    scales = solution.scales
    return Blocks(
        fetch(contiguous(to_small_integers(solution.points).T)),
        fetch(contiguous(scales.d.T)),
        None if scales.dmin is None else fetch(contiguous(scales.dmin.T)),
        fetch(contiguous(scales.scales.T)).astype(np.int16),
        None if scales.minima is None else fetch(contiguous(scales.minima.T)).astype(np.int16),
    )


def solve(format_: BlockFormat, w: Array, curvature: Curvature, *, sweeps: int, by: Steps | None = None) -> Solution:
    """Round w (n_in, n_rows). `by`: the implementation of the steps, the fastest by default."""
    by = by or _steps(w)
    scales = search_scales(w, curvature.importance, format_, by)
    solution = Solution(scales, feed_back(format_, w, scales, curvature, by))
    for _ in range(sweeps):
        sweep(format_, w, solution, curvature.hessian, by)
    return solution


def _steps(w: Array) -> Steps:
    return steps() if namespace(w) is np else TENSORS


def values(format_: BlockFormat, solution: Solution) -> Array:
    """The dequantized matrix (n_in, n_rows)."""
    step, base = solution.scales.step(format_), solution.scales.base(format_)
    dequantized: Array = solution.points * repeated(step, format_.group)
    if base is not None:
        dequantized += repeated(base, format_.group)
    return dequantized


def feed_back(format_: BlockFormat, w: Array, scales: Scales, curvature: Curvature, by: Steps | None = None) -> Array:
    """The points (n_in, n_rows) by error feedback with fixed scales."""
    by = by or _steps(w)
    n_in, order, feedback = len(w), curvature.order, curvature.feedback
    if namespace(w) is np:
        order = order.astype(np.int64)
    step, base = scales.step(format_), scales.base(format_)
    columns = contiguous(w[order])
    errors, points = (empty(tuple(columns.shape), columns) for _ in range(2))
    for start in range(0, n_in, _CHUNK):
        stop = min(start + _CHUNK, n_in)
        carried = feedback[:start, start:stop].T @ errors[:start]
        carried += columns[start:stop]
        for first in range(start, stop, _RUN):
            last = min(first + _RUN, stop)
            target = carried[first - start : last - start]
            if first > start:
                target += feedback[start:first, first:last].T @ errors[start:first]
            run = Run(order[first:last], feedback[first:last, first:last], columns[first:last], target)
            by.feed_back_run(format_, run, step, base, points, errors[first:last])
    return points


def sweep(format_: BlockFormat, w: Array, solution: Solution, hessian: Array, by: Steps | None = None) -> None:
    """One sweep over all blocks: scales refitted, levels moved."""
    by = by or _steps(w)
    error = values(format_, solution)
    error -= w
    width = format_.block if format_.block > 32 else _CHUNK
    for start in range(0, len(w), width):
        stop = min(start + width, len(w))
        gradient = hessian[start:stop] @ error
        chunk = _Chunk(format_, solution, error[start:stop], gradient, hessian[start:stop, start:stop], start, by)
        chunk.descend()


@dataclass(frozen=True)
class _Chunk:
    """Whole blocks from column `start`. `gradient` is H E there, `hessian` the chunk's own block of H."""

    format: BlockFormat
    solution: Solution
    error: Array
    gradient: Array
    hessian: Array
    start: int
    by: Steps

    def descend(self) -> None:
        format_, first = self.format, self.start // self.format.block
        last = first + len(self.error) // format_.block
        for block in range(first, last):
            for group in range(block * format_.groups, (block + 1) * format_.groups):
                self._descend_group(block, group)
            self._refit_block(block, stays=block + 1 == last)

    def _descend_group(self, block: int, group: int) -> None:
        format_, scales, size = self.format, self.solution.scales, self.format.group
        at = slice(group * size - self.start, (group + 1) * size - self.start)
        hessian, points = self.hessian[at, at], self.solution.points[group * size : (group + 1) * size]
        moved, pull = namespace(points).zeros_like(points), copied(self.gradient[at])
        if format_.has_group_scales:
            u, v, hv = points * scales.d[block], None, None
            minimum = None
            if scales.minima is not None and scales.dmin is not None:
                v = repeated(-scales.dmin[block : block + 1], size)
                hv, minimum = hessian.sum(axis=1)[:, None] * v, scales.minima[group]
            fit = Fit(u, hessian @ u, v, hv, pull)
            self.by.refit_integers(format_, fit, scales.scales[group], minimum, self.error[at], moved)
            pull += hessian @ moved
        step = scales.d[block] * scales.scales[group]
        self.by.descend_group(format_, GroupLevels(hessian, pull, step, points, self.error[at]), moved)
        self.gradient[:] += self.hessian[:, at] @ moved

    def _refit_block(self, block: int, *, stays: bool) -> None:
        """Refit d and dmin. `stays`: nothing reads the gradient afterwards."""
        format_, scales, size = self.format, self.solution.scales, self.format.block
        at, groups = slice(block * size - self.start, (block + 1) * size - self.start), format_.groups
        hessian, points = self.hessian[at, at], self.solution.points[block * size : (block + 1) * size]
        of_block = slice(block * groups, (block + 1) * groups)
        u, v, hv, dmin = points * repeated(scales.scales[of_block], format_.group), None, None, None
        if scales.minima is not None and scales.dmin is not None:
            v, dmin = -repeated(scales.minima[of_block], format_.group), scales.dmin[block]
            hv = hessian.reshape(size, groups, format_.group).sum(axis=2) @ -scales.minima[of_block]
        moved = empty(tuple(points.shape), points)
        fit = Fit(u, hessian @ u, v, hv, self.gradient[at])
        self.by.refit_halves(fit, scales.d[block], dmin, self.error[at], moved)
        if not stays:
            self.gradient[:] += self.hessian[:, at] @ moved
