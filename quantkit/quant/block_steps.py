"""The inner steps of error feedback in GGUF blocks: a run of columns, the levels of a group, the scales of a block.

Arrays have columns first: (n_cols, n_rows). Sums over columns are in order, so that `block_kernels.c` has the same
bytes. The functions of runs, groups and refits change arrays of numpy in place; block_tensors.py has them for torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.forward.arrays import bounded, divided, namespace, where
from quantkit.gguf.blocks import BlockFormat
from quantkit.quant.block_search import inverse, nearest_points, to_half
from quantkit.quant.grid import Array

_TINY = 1e-30
_SINGULAR = 1e-6


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
        point = nearest_points(target * inverse(step[group], step[group] != 0), format_)
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
    by_step = inverse(step, step != 0)
    for k in range(format_.group):
        if hessian[k, k] <= 0:
            continue
        better = nearest_points(points[k] - pull[k] * (by_step / hessian[k, k]), format_)
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


@dataclass(frozen=True)
class Form:
    """The error as a quadratic form of the changes a and b of both factors, one for each row: float32 (n_rows,).

    It changes by  2 (a ug + b vg) + a^2 uu + 2 a b uv + b^2 vv;  vv, uv and vg are None without minima.
    """

    uu: Array
    ug: Array
    vv: Array | None = None
    uv: Array | None = None
    vg: Array | None = None


def best_halves(form: Form, d: Array, dmin: Array | None) -> tuple[Array, Array | None]:
    """The float16 scale, and minimum, that are best for the levels, or `d` and `dmin` if none is better."""
    if dmin is None or form.vv is None or form.uv is None or form.vg is None:
        return d + _if_better(form, to_half(d - divided(form.ug, form.uu, form.uu > _TINY, 0.0)) - d), None
    uu, ug, vv, uv, vg = form.uu, form.ug, form.vv, form.uv, form.vg
    by_determinant = _inverse_determinant(form)
    du, dv = (uv * vg - vv * ug) * by_determinant, (uv * ug - uu * vg) * by_determinant
    first = to_half(d + du)
    trials = (
        (first, to_half(dmin + dv)),
        (first, to_half(dmin + _suiting(form, first - d))),
        (to_half(d + divided(-ug, uu, uu > _TINY, 0.0)), dmin),
    )
    return _best(form, trials, (d, dmin))


def best_integers(
    limits: tuple[Any, Any, Any], form: Form, scale: Array, minimum: Array | None
) -> tuple[Array, Array | None]:
    """The integer scale, and minimum, near the least-squares solution, or the given ones if none is better.

    limits: the least and the greatest scale, and the greatest minimum.
    """
    xp, (low, high, most) = namespace(scale), limits
    if minimum is None or form.vv is None or form.uv is None or form.vg is None:
        best = xp.round(scale - divided(form.ug, form.uu, form.uu > _TINY, 0.0))
        return scale + _if_better(form, bounded(best, low, high) - scale), None
    center = xp.round(scale + (form.uv * form.vg - form.vv * form.ug) * _inverse_determinant(form))
    trials = []
    for change in (0.0, -1.0, 1.0):
        trial = bounded(center + change, low, high)
        trials.append((trial, bounded(xp.round(minimum + _suiting(form, trial - scale)), 0.0, most)))
    return _best(form, trials, (scale, minimum))


def refit_halves(fit: Fit, d: Array, dmin: Array | None, error: Array, moved: Array) -> None:
    """The float16 scale, and minimum, of a block that are best for its levels; both float32 (n_rows,).

    error: the changes of the values are added to it. moved: is set to them. Both (n_cols, n_rows).
    """
    _refit(fit, d, dmin, best_halves(_form(fit), d, dmin), error, moved)


def refit_integers(
    format_: BlockFormat, fit: Fit, scale: Array, minimum: Array | None, error: Array, moved: Array
) -> None:
    """The integer scale, and minimum, of a group near the least-squares solution; both float32 (n_rows,).

    error, moved: see `refit_halves`.
    """
    _refit(fit, scale, minimum, best_integers(format_.scale_limits, _form(fit), scale, minimum), error, moved)


def _refit(
    fit: Fit, scale: Array, minimum: Array | None, best: tuple[Array, Array | None], error: Array, moved: Array
) -> None:
    np.multiply(fit.u, best[0] - scale, out=moved)
    scale[:] = best[0]
    if fit.v is not None and minimum is not None and best[1] is not None:
        moved += fit.v * (best[1] - minimum)
        minimum[:] = best[1]
    error += moved


def _form(fit: Fit) -> Form:
    uu, ug = _dot(fit.u, fit.hu), _dot(fit.u, fit.pull)
    if fit.v is None or fit.hv is None:
        return Form(uu, ug)
    return Form(uu, ug, _dot(fit.v, fit.hv), _dot(fit.u, fit.hv), _dot(fit.v, fit.pull))


def _if_better(form: Form, change: Array) -> Array:
    """The change of u's factor, or 0 where it does not lower the error."""
    return where(~(change * (2 * form.ug + change * form.uu) >= 0), change, 0.0)


def _suiting(form: Form, a: Array) -> Array:
    """The change of v's factor that is best with a change `a` of u's."""
    assert form.vv is not None and form.uv is not None and form.vg is not None
    return divided(-(form.vg + a * form.uv), form.vv, form.vv > _TINY, 0.0)


def _best(form: Form, trials: Sequence[tuple[Array, Array]], old: tuple[Array, Array]) -> tuple[Array, Array]:
    """The trial (scale, minimum) with the least error, the first of equals; `old` if none is better."""
    assert form.vv is not None and form.uv is not None and form.vg is not None
    (best, best_min), least = old, namespace(old[0]).zeros_like(old[0])
    for trial, trial_min in trials:
        a, b = trial - old[0], trial_min - old[1]
        gain = 2 * (a * form.ug + b * form.vg) + a * a * form.uu + 2 * a * b * form.uv + b * b * form.vv
        better = gain < least
        least, best, best_min = (
            where(better, gain, least),
            where(better, trial, best),
            where(better, trial_min, best_min),
        )
    return best, best_min


def _inverse_determinant(form: Form) -> Array:
    """1 over the determinant, or 0 where the two factors cannot be told apart."""
    assert form.vv is not None and form.uv is not None
    det = form.uu * form.vv - form.uv * form.uv
    return inverse(det, det > _SINGULAR * form.uu * form.vv)


def _dot(a: Array, b: Array) -> Array:
    """The inner product of each row, summed in the order of the columns: (n_rows,)."""
    product: Array = a[0] * b[0]
    for k in range(1, len(a)):
        product += a[k] * b[k]
    return product
