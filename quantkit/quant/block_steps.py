"""The inner steps of error feedback in GGUF blocks: a run of columns, the levels of a group, the scales of a block.

Arrays have columns first: (n_cols, n_rows). Sums over columns are in order, so that `block_kernels.c` has the same
bytes. All functions change arrays in place.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantkit.gguf.blocks import BlockFormat
from quantkit.quant.block_search import nearest_points, to_half
from quantkit.quant.grid import Array

_TINY = np.float32(1e-30)
_SINGULAR = np.float32(1e-6)


@dataclass(frozen=True)
class Run:
    """Neighbouring columns in the order of feedback, of which each compensates the earlier ones.

    columns: their positions in the matrix, int64 (n,). feedback: float32 (n, n), the weights of earlier errors.
    weights: float32 (n, n_rows). target: the weights plus what earlier runs carry over, float32 (n, n_rows).
    """

    columns: NDArray[np.int64]
    feedback: Array
    weights: Array
    target: Array


def feed_back_run(
    format_: BlockFormat, run: Run, step: Array, base: Array | None, points: Array, errors: Array
) -> None:
    """Round the columns of a run one by one, into `points` (n_in, n_rows) and `errors` (n, n_rows).

    step, base: float32 (n_groups, n_rows), see `Scales`.
    """
    for k, column in enumerate(run.columns):
        group = column // format_.group
        target = run.target[k]
        if base is not None:
            target -= base[group]
        point = nearest_points(target * _inverse(step[group]), format_)
        points[column] = point
        point *= step[group]
        if base is not None:
            point += base[group]
        np.subtract(run.weights[k], point, out=errors[k])
        run.target[k + 1 :] += run.feedback[k, k + 1 :, None] * errors[k]


@dataclass(frozen=True)
class GroupLevels:
    """The levels of a group, and what moves them.

    hessian: the group's block of H, float32 (group, group). pull: H E of the group, (group, n_rows), overwritten.
    step: (n_rows,). points, error: (group, n_rows).
    """

    hessian: Array
    pull: Array
    step: Array
    points: Array
    error: Array


def descend_group(format_: BlockFormat, group: GroupLevels, moved: Array) -> None:
    """Move each level of a group to its best value, all others fixed, and add the changes of the values to `moved`."""
    hessian, pull, step, points = group.hessian, group.pull, group.step, group.points
    inverse = _inverse(step)
    for k in range(format_.group):
        if hessian[k, k] <= 0:
            continue
        better = nearest_points(points[k] - pull[k] * (inverse / hessian[k, k]), format_)
        better[step == 0] = points[k][step == 0]
        change = (better - points[k]) * step
        points[k] = better
        group.error[k] += change
        moved[k] += change
        pull[k + 1 :] += hessian[k + 1 :, k, None] * change


@dataclass(frozen=True)
class Fit:
    """Least squares of the factor of u, and of the factor of v where a type has minima, in H: all (n_cols, n_rows).

    u, v: what a change of one of each factor adds to the values. hu, hv: H u, H v. pull: H E. v is None without minima.
    """

    u: Array
    hu: Array
    v: Array | None
    hv: Array | None
    pull: Array


def refit_halves(fit: Fit, d: Array, dmin: Array | None, error: Array, moved: Array) -> None:
    """The float16 scale, and minimum, of a block that are best for its levels; both float32 (n_rows,).

    error: the changes of the values are added to it. moved: is set to them. Both (n_cols, n_rows).
    """
    uu, ug = _dot(fit.u, fit.hu), _dot(fit.u, fit.pull)
    if fit.v is None or fit.hv is None or dmin is None:
        best = to_half(d - np.divide(ug, uu, out=np.zeros_like(ug), where=uu > _TINY))
        change = best - d
        change[change * (2 * ug + change * uu) >= 0] = 0
        d += change
        _move(fit.u * change, error, moved)
        return
    vv, uv, vg = _dot(fit.v, fit.hv), _dot(fit.u, fit.hv), _dot(fit.v, fit.pull)
    old, old_min = d.copy(), dmin.copy()
    inverse = _inverse_determinant(uu, vv, uv)
    du, dv = (uv * vg - vv * ug) * inverse, (uv * ug - uu * vg) * inverse
    alone = np.divide(-ug, uu, out=np.zeros_like(ug), where=uu > _TINY)
    least = np.zeros_like(old)
    first = to_half(old + du)
    # the minimum that suits the rounded d
    suits = np.divide(-(vg + (first - old) * uv), vv, out=np.zeros_like(vg), where=vv > _TINY)
    for trial in (
        (first, to_half(old_min + dv)),
        (first, to_half(old_min + suits)),
        (to_half(old + alone), old_min),
    ):
        _take(trial, (old, old_min), (uu, vv, uv, ug, vg), least, (d, dmin))
    _move(fit.u * (d - old) + fit.v * (dmin - old_min), error, moved)


def refit_integers(
    format_: BlockFormat, fit: Fit, scale: Array, minimum: Array | None, error: Array, moved: Array
) -> None:
    """The integer scale, and minimum, of a group near the least-squares solution; both float32 (n_rows,).

    error, moved: see `refit_halves`.
    """
    low, high = np.float32(format_.least_scale), np.float32(format_.greatest_scale)
    uu, ug = _dot(fit.u, fit.hu), _dot(fit.u, fit.pull)
    if fit.v is None or fit.hv is None or minimum is None:
        best = np.rint(scale - np.divide(ug, uu, out=np.zeros_like(ug), where=uu > _TINY))
        change = np.fmin(np.fmax(best, low), high) - scale
        change[change * (2 * ug + change * uu) >= 0] = 0
        scale += change
        _move(fit.u * change, error, moved)
        return
    vv, uv, vg = _dot(fit.v, fit.hv), _dot(fit.u, fit.hv), _dot(fit.v, fit.pull)
    old, old_min = scale.copy(), minimum.copy()
    center = np.rint(old + (uv * vg - vv * ug) * _inverse_determinant(uu, vv, uv))
    least = np.zeros_like(old)
    for change_of in (0, -1, 1):
        trial = np.fmin(np.fmax(center + np.float32(change_of), low), high)
        suits = np.divide(-(vg + (trial - old) * uv), vv, out=np.zeros_like(vg), where=vv > _TINY)
        best_min = np.fmax(np.rint(old_min + suits), np.float32(0))
        best_min = np.fmin(best_min, np.float32(format_.greatest_minimum))
        _take((trial, best_min), (old, old_min), (uu, vv, uv, ug, vg), least, (scale, minimum))
    _move(fit.u * (scale - old) + fit.v * (minimum - old_min), error, moved)


def _take(
    trial: tuple[Array, Array],
    old: tuple[Array, Array],
    form: tuple[Array, Array, Array, Array, Array],
    least: Array,
    best: tuple[Array, Array],
) -> None:
    """Keep a trial (scale, minimum) in `best` where it changes the error by less than `least`."""
    uu, vv, uv, ug, vg = form
    a, b = trial[0] - old[0], trial[1] - old[1]
    gain = 2 * (a * ug + b * vg) + a * a * uu + 2 * a * b * uv + b * b * vv
    better = gain < least
    for target, source in ((least, gain), (best[0], trial[0]), (best[1], trial[1])):
        np.copyto(target, source, where=better)


def _inverse_determinant(uu: Array, vv: Array, uv: Array) -> Array:
    """1 over the determinant, or 0 where the two factors cannot be told apart."""
    det = uu * vv - uv * uv
    return np.divide(np.float32(1), det, out=np.zeros_like(det), where=det > _SINGULAR * uu * vv)


def _inverse(step: Array) -> Array:
    return np.divide(np.float32(1), step, out=np.zeros_like(step), where=step != 0)


def _move(change: Array, error: Array, moved: Array) -> None:
    moved[:] = change
    error += change


def _dot(a: Array, b: Array) -> Array:
    """The inner product of each row, summed in the order of the columns: (n_rows,)."""
    product: Array = a[0] * b[0]
    for k in range(1, len(a)):
        product += a[k] * b[k]
    return product
