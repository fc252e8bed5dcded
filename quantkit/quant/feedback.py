"""Rounding of a matrix to a GGUF type with error feedback, and descent over its scales and levels.

The output error of rounding W (n_out, n_in) to W + E is tr(E H E'), H = X X' over the tokens. Four steps lower it:

1. scales by a weighted search (`block_search`), with the squared pivots of H's factor as weights;
2. with these scales fixed, GPTQ's error feedback over all columns (arXiv 2210.17323, in the form of `gptq.py`);
3. for every block, the scales refitted to the levels by least squares in H;
4. coordinate descent: each level moves to the nearest of its best value, all others fixed.

Steps 3 and 4 alternate, block by block, in sweeps. No move raises the error.
"""

from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.gguf.blocks import FORMATS, BlockFormat, Blocks, pack_blocks
from quantkit.quant.block_search import Scales, nearest_points, search_scales, to_half
from quantkit.quant.factor import factor_gram
from quantkit.quant.grid import Array
from quantkit.workers import SERIAL, Workers, parts

DAMP, SHRINK = 0.01, 0.3
SOLVER_VERSION = 1
"""Raised when the bytes change, so that an unfinished run is not continued with other bytes."""
SWEEPS = 2
"""Sweeps after the feedback."""
_ROWS = 256  # rows that are rounded in one batch
_CHUNK = 128  # columns that share one matrix product with all others
_RUN = 16
_TINY = np.float32(1e-30)


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
    hessian = gram.copy()
    np.fill_diagonal(hessian, np.diagonal(gram) * np.float32(1 + shrink))
    order, factor, damp = factor_gram(hessian, count, damp=damp, act_order=True, name=name, workers=workers)
    pivots = np.diagonal(factor).copy()
    importance = np.empty_like(pivots)
    importance[order] = pivots * pivots
    diagonal = np.diagonal(hessian) + np.float32(damp * np.diagonal(hessian).mean(dtype=np.float64))
    np.fill_diagonal(hessian, diagonal)
    return Curvature(hessian, order, np.triu(factor / pivots, 1), importance, damp)


def quantize_with_feedback(
    kind: GGMLQuantizationType,
    weight: Array,
    curvature: Curvature,
    *,
    sweeps: int = SWEEPS,
    workers: Workers = SERIAL,
) -> NDArray[np.uint8]:
    """The bytes of `weight`, float32 (n_out, n_in), in `kind`: uint8 (n_out, row_bytes)."""

    def some(rows: slice) -> NDArray[np.uint8]:
        return pack_blocks(
            kind, as_blocks(solve(FORMATS[kind], np.ascontiguousarray(weight[rows].T), curvature, sweeps=sweeps))
        )

    return np.concatenate(workers.map(some, list(parts(len(weight), _ROWS))))


def working_memory(n_in: int, threads: int) -> int:
    """Bytes of the rows of `n_in` weights that are rounded at once: about ten arrays of float32."""
    return threads * _ROWS * n_in * 4 * 10


@dataclass
class Solution:
    """Scales and points (n_in, n_rows)."""

    scales: Scales
    points: Array


def as_blocks(solution: Solution) -> Blocks:
    scales = solution.scales
    return Blocks(
        np.ascontiguousarray(solution.points.T),
        np.ascontiguousarray(scales.d.T),
        None if scales.dmin is None else np.ascontiguousarray(scales.dmin.T),
        np.ascontiguousarray(scales.scales.T).astype(np.int16),
        None if scales.minima is None else np.ascontiguousarray(scales.minima.T).astype(np.int16),
    )


def solve(format_: BlockFormat, w: Array, curvature: Curvature, *, sweeps: int) -> Solution:
    """Round w (n_in, n_rows)."""
    scales = search_scales(w, curvature.importance, format_)
    solution = Solution(scales, feed_back(format_, w, scales, curvature))
    for _ in range(sweeps):
        sweep(format_, w, solution, curvature.hessian)
    return solution


def values(format_: BlockFormat, solution: Solution) -> Array:
    """The dequantized matrix (n_in, n_rows)."""
    step, base = solution.scales.step(format_), solution.scales.base(format_)
    made = solution.points * np.repeat(step, format_.group, axis=0)
    if base is not None:
        made += np.repeat(base, format_.group, axis=0)
    return made


def feed_back(format_: BlockFormat, w: Array, scales: Scales, curvature: Curvature) -> Array:
    """The points (n_in, n_rows) by error feedback with fixed scales."""
    n_in = len(w)
    order, feedback = curvature.order, curvature.feedback
    step, base = scales.step(format_), scales.base(format_)
    inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step != 0)
    columns = np.ascontiguousarray(w[order])
    errors, points = np.empty_like(columns), np.empty_like(columns)
    for start in range(0, n_in, _CHUNK):
        stop = min(start + _CHUNK, n_in)
        carried = feedback[:start, start:stop].T @ errors[:start]
        carried += columns[start:stop]
        for first in range(start, stop, _RUN):
            last = min(first + _RUN, stop)
            if first > start:
                carried[first - start : last - start] += feedback[start:first, first:last].T @ errors[start:first]
            for k in range(first, last):
                target, column = carried[k - start], order[k]
                if k > first:
                    target += feedback[first:k, k] @ errors[first:k]
                group = column // format_.group
                if base is not None:
                    target -= base[group]
                point = nearest_points(target * inverse[group], format_)
                points[column] = point
                point *= step[group]
                if base is not None:
                    point += base[group]
                np.subtract(columns[k], point, out=errors[k])
    return points


def sweep(format_: BlockFormat, w: Array, solution: Solution, hessian: Array) -> None:
    """One sweep over all blocks: scales refitted, levels moved."""
    error = values(format_, solution)
    error -= w
    width = format_.block if format_.block > 32 else _CHUNK
    for start in range(0, len(w), width):
        stop = min(start + width, len(w))
        gradient = hessian[start:stop] @ error
        _sweep_chunk(format_, solution, error[start:stop], gradient, hessian[start:stop, start:stop], start)


def _sweep_chunk(
    format_: BlockFormat, solution: Solution, error: Array, gradient: Array, hessian: Array, start: int
) -> None:
    """Descend in a chunk of whole blocks from column `start`; `gradient` is H E there, `hessian` the chunk's own."""
    local = np.ascontiguousarray(hessian)
    for block in range(start // format_.block, (start + len(error)) // format_.block):
        first = block * format_.block - start
        for group in range(block * format_.groups, (block + 1) * format_.groups):
            at = slice(group * format_.group - start, (group + 1) * format_.group - start)
            if format_.has_group_scales:
                _refit_group(format_, solution, group, block, error, gradient, local, at)
            _descend(format_, solution, group, block, error, gradient, local, at)
        _refit_block(format_, solution, block, error, gradient, local, slice(first, first + format_.block))


def _descend(
    format_: BlockFormat,
    solution: Solution,
    group: int,
    block: int,
    error: Array,
    gradient: Array,
    local: Array,
    at: slice,
) -> None:
    scales = solution.scales
    step = scales.d[block] * scales.scales[group]
    inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step != 0)
    first = group * format_.group
    points = solution.points[first : first + format_.group]
    moved = np.empty_like(points)
    pull = gradient[at].copy()
    own = local[at, at]
    for k in range(format_.group):
        if k:
            pull[k] += own[k, :k] @ moved[:k]
        if own[k, k] <= 0:
            moved[k] = 0
            continue
        better = nearest_points(points[k] - pull[k] * (inverse / own[k, k]), format_)
        better[step == 0] = points[k][step == 0]
        np.multiply(better - points[k], step, out=moved[k])
        points[k] = better
    error[at] += moved
    gradient += local[:, at] @ moved


def _refit_block(
    format_: BlockFormat, solution: Solution, block: int, error: Array, gradient: Array, local: Array, at: slice
) -> None:
    """Least squares of d and dmin for the present levels and group scales."""
    scales, groups = solution.scales, slice(block * format_.groups, (block + 1) * format_.groups)
    u = solution.points[block * format_.block : (block + 1) * format_.block] * np.repeat(
        scales.scales[groups], format_.group, axis=0
    )
    v = None if scales.minima is None else -np.repeat(scales.minima[groups], format_.group, axis=0)
    own, pull = local[at, at], gradient[at]
    hu = own @ u
    uu, ug = _dot(u, hu), _dot(u, pull)
    if v is None:
        best = to_half(scales.d[block] - np.divide(ug, uu, out=np.zeros_like(ug), where=uu > _TINY))
        change = best - scales.d[block]
        change[change * (2 * ug + change * uu) >= 0] = 0
        scales.d[block] += change
        moved = u * change
    else:
        hv = own @ v
        vv, uv, vg = _dot(v, hv), _dot(u, hv), _dot(v, pull)
        assert scales.dmin is not None
        old, old_min = scales.d[block].copy(), scales.dmin[block].copy()
        det = uu * vv - uv * uv
        good = det > 1e-6 * uu * vv
        inv = np.divide(np.float32(1), det, out=np.zeros_like(det), where=good)
        du, dv = (uv * vg - vv * ug) * inv, (uv * ug - uu * vg) * inv
        alone = np.divide(-ug, uu, out=np.zeros_like(ug), where=uu > _TINY)
        best, best_min, least = old.copy(), old_min.copy(), np.zeros_like(old)
        first = to_half(old + du)
        # the minimum that suits the rounded d
        suits = np.divide(-(vg + (first - old) * uv), vv, out=np.zeros_like(vg), where=vv > _TINY)
        for trial, trial_min in (
            (first, to_half(old_min + dv)),
            (first, to_half(old_min + suits)),
            (to_half(old + alone), old_min),
        ):
            a, b = trial - old, trial_min - old_min
            gain = 2 * (a * ug + b * vg) + a * a * uu + 2 * a * b * uv + b * b * vv
            better = gain < least
            for target, source in ((least, gain), (best, trial), (best_min, trial_min)):
                np.copyto(target, source, where=better)
        scales.d[block], scales.dmin[block] = best, best_min
        moved = u * (best - old) + v * (best_min - old_min)
    error[at] += moved
    gradient += local[:, at] @ moved


def _refit_group(
    format_: BlockFormat,
    solution: Solution,
    group: int,
    block: int,
    error: Array,
    gradient: Array,
    local: Array,
    at: slice,
) -> None:
    """The best of a group's integer scale and minimum near the least-squares solution."""
    scales = solution.scales
    first = group * format_.group
    d = scales.d[block]
    u = solution.points[first : first + format_.group] * d
    own, pull = local[at, at], gradient[at]
    uu, ug = _dot(u, own @ u), _dot(u, pull)
    old = scales.scales[group].copy()
    low, high = format_.least_scale, format_.greatest_scale
    if scales.minima is None:
        best = np.clip(np.rint(old - np.divide(ug, uu, out=np.zeros_like(ug), where=uu > _TINY)), low, high)
        change = best - old
        change[change * (2 * ug + change * uu) >= 0] = 0
        scales.scales[group] += change
        moved = u * change
    else:
        assert scales.dmin is not None
        v = np.broadcast_to(-scales.dmin[block], u.shape)
        hv = own @ v
        vv, uv, vg = _dot(v, hv), _dot(u, hv), _dot(v, pull)
        old_min = scales.minima[group].copy()
        det = uu * vv - uv * uv
        good = det > 1e-6 * uu * vv
        inv = np.divide(np.float32(1), det, out=np.zeros_like(det), where=good)
        center = np.rint(old + (uv * vg - vv * ug) * inv)
        best, best_min, least = old.copy(), old_min.copy(), np.zeros_like(d)
        for change_of in (0, -1, 1):
            trial = np.clip(center + np.float32(change_of), low, high)
            a = trial - old
            suits = np.divide(-(vg + a * uv), vv, out=np.zeros_like(vg), where=vv > _TINY)
            trial_min = np.clip(np.rint(old_min + suits), 0, format_.greatest_minimum)
            b = trial_min - old_min
            gain = 2 * (a * ug + b * vg) + a * a * uu + 2 * a * b * uv + b * b * vv
            better = gain < least
            for target, source in ((least, gain), (best, trial), (best_min, trial_min)):
                np.copyto(target, source, where=better)
        scales.scales[group], scales.minima[group] = best, best_min
        moved = u * (best - old) + v * (best_min - old_min)
    error[at] += moved
    gradient += local[:, at] @ moved


def _dot(a: Array, b: Array) -> Array:
    product: Array = np.einsum("kr,kr->r", a, b)
    return product
