"""The steps of error feedback in GGUF blocks on tensors of torch: those of block_search.py and block_steps.py.

A run of columns, a group's levels and a refit are one expression each, which torch compiles: as small operations each
would cost a launch. What differs between types is in tensors, so that types share the compiled code.
"""

import functools
from typing import Any, NamedTuple

from quantkit.forward.arrays import bounded, device, namespace, weighted_sum
from quantkit.gguf.blocks import BlockFormat
from quantkit.quant.block_search import Scales, inverse, search_scales, table_of
from quantkit.quant.block_steps import Fit, Form, GroupLevels, Run, best_halves, best_integers
from quantkit.quant.column_runs import RUN, compiled
from quantkit.quant.grid import Array


class Limits(NamedTuple):
    """What a type can hold, as tensors without axes: `low` and `high` of points, and the limits of integer scales.

    table: `block_search.table_of`, or None.
    """

    low: Any
    high: Any
    least_scale: Any
    greatest_scale: Any
    greatest_minimum: Any
    table: Any


@functools.cache
def limits_of(format_: BlockFormat, to: Any) -> Limits:
    """The limits of a type on a device of torch."""
    numbers = (format_.low, format_.high, *format_.scale_limits)
    tensors = [namespace(to).tensor(float(number), device=to) for number in numbers]
    return Limits._make([*tensors, None if format_.table is None else table_of(format_.table, to)])


class TensorSteps:
    """The functions of `block_kernels.Steps`; all change tensors in place."""

    def search_scales(self, x: Array, weight: Array, format_: BlockFormat) -> Scales:
        return search_scales(x, weight, format_)

    def feed_back_run(
        self, format_: BlockFormat, run: Run, step: Array, base: Array | None, points: Array, errors: Array
    ) -> None:
        groups = run.columns // format_.group
        bases = None if base is None else base[groups]
        limits = limits_of(format_, device(run.target))
        made, off = compiled(feed_back)(run.target, run.weights, run.feedback, step[groups], bases, limits)
        points[run.columns] = made
        errors[:] = off

    def descend_group(self, format_: BlockFormat, group: GroupLevels, moved: Array) -> None:
        limits = limits_of(format_, device(moved))
        for first in range(0, format_.group, RUN):
            at, after = slice(first, first + RUN), slice(first + RUN, None)
            own = group.hessian[at, at]
            better, changes = compiled(descend)(group.pull[at], group.points[at], group.step, own, limits)
            if first + RUN < format_.group:
                group.pull[after] += group.hessian[after, at] @ changes
            group.points[at] = better
            group.error[at] += changes
            moved[at] += changes

    def refit_halves(self, fit: Fit, d: Array, dmin: Array | None, error: Array, moved: Array) -> None:
        parts = (fit.u, fit.hu, fit.v, fit.hv, fit.pull)
        _put(compiled(refit_halves)(*parts, d, dmin), d, dmin, error, moved)

    def refit_integers(
        self, format_: BlockFormat, fit: Fit, scale: Array, minimum: Array | None, error: Array, moved: Array
    ) -> None:
        parts = (fit.u, fit.hu, fit.v, fit.hv, fit.pull)
        limits = limits_of(format_, device(moved))
        _put(compiled(refit_integers)(*parts, scale, minimum, limits), scale, minimum, error, moved)


def _put(
    fitted: tuple[Array, Array | None, Array], scale: Array, minimum: Array | None, error: Array, moved: Array
) -> None:
    scale[:] = fitted[0]
    if minimum is not None and fitted[1] is not None:
        minimum[:] = fitted[1]
    moved[:] = fitted[2]
    error += moved


def nearest(values: Any, limits: Limits) -> Any:
    """See `block_search.nearest_points`."""
    xp = namespace(values)
    if limits.table is None:
        return bounded(xp.round(values), limits.low, limits.high)
    halves = xp.floor(bounded(values, limits.low, limits.high) * 2.0) - 2.0 * limits.low
    return limits.table[halves.long()]


def feed_back(targets: Any, columns: Any, feedback: Any, steps: Any, bases: Any, limits: Limits) -> tuple[Any, Any]:
    """The points and the errors (n, n_rows) of a run; `steps` and `bases`, the same shape, of its columns."""
    points: list[Any] = []
    errors: list[Any] = []
    for k in range(len(targets)):
        target = targets[k]
        if k:
            target = target + weighted_sum(feedback[:k, k], errors)
        if bases is not None:
            target = target - bases[k]
        points.append(nearest(target * inverse(steps[k], steps[k] != 0), limits))
        value = points[k] * steps[k]
        errors.append(columns[k] - (value if bases is None else value + bases[k]))
    xp = namespace(targets)
    return xp.stack(points), xp.stack(errors)


def descend(pull: Any, points: Any, step: Any, hessian: Any, limits: Limits) -> tuple[Any, Any]:
    """The better points (n, n_rows) of neighbouring columns of a group, and the changes of the weights."""
    xp, by_step = namespace(pull), inverse(step, step != 0)
    better: list[Any] = []
    changes: list[Any] = []
    for k in range(len(pull)):
        slope = pull[k]
        if k:
            slope = slope + weighted_sum(hessian[k, :k], changes)
        stays = (step == 0) | (hessian[k, k] <= 0)
        nearer = nearest(points[k] - slope * (by_step / hessian[k, k]), limits)
        better.append(xp.where(stays, points[k], nearer))
        changes.append((better[k] - points[k]) * step)
    return xp.stack(better), xp.stack(changes)


def refit_halves(u: Any, hu: Any, v: Any, hv: Any, pull: Any, d: Any, dmin: Any) -> tuple[Any, Any, Any]:
    """See `block_steps.refit_halves`: the scale, the minimum, and the changes of the weights."""
    best, best_min = best_halves(_form(u, hu, v, hv, pull), d, dmin)
    return best, best_min, _changes(u, best - d, v, None if best_min is None else best_min - dmin)


def refit_integers(
    u: Any, hu: Any, v: Any, hv: Any, pull: Any, scale: Any, minimum: Any, limits: Limits
) -> tuple[Any, Any, Any]:
    """See `block_steps.refit_integers`: the scale, the minimum, and the changes of the weights."""
    of_scales = limits.least_scale, limits.greatest_scale, limits.greatest_minimum
    best, best_min = best_integers(of_scales, _form(u, hu, v, hv, pull), scale, minimum)
    return best, best_min, _changes(u, best - scale, v, None if best_min is None else best_min - minimum)


def _form(u: Any, hu: Any, v: Any, hv: Any, pull: Any) -> Form:
    uu, ug = (u * hu).sum(0), (u * pull).sum(0)
    return Form(uu, ug) if v is None else Form(uu, ug, (v * hv).sum(0), (u * hv).sum(0), (v * pull).sum(0))


def _changes(u: Any, a: Any, v: Any, b: Any) -> Any:
    return u * a if v is None else u * a + v * b


TENSORS = TensorSteps()
