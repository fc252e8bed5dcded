"""The steps of rounding that go column by column: a run of columns, each of which depends on those before it.

numpy does a run column by column in place. On a device of torch each of these small operations would cost a launch, so
a run is written out as one expression, which torch compiles to one kernel.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import numpy as np

from quantkit.forward.arrays import clip, namespace, rint, weighted_sum
from quantkit.forward.devices import is_full
from quantkit.quant.grid import Array

RUN = 16
"""Columns of a run."""

_F = TypeVar("_F", bound=Callable[..., Any])


def round_run(
    targets: Array, columns: Array, feedback: Array, scales: Array, zeros: Array, top: float
) -> tuple[Array, Array]:
    """Round a run of columns with error feedback: the integers and the errors, both float32 (n, n_rows).

    targets: float32 (n, n_rows), the columns plus the weighted errors of all columns before the run; numpy's are
    changed. columns: as they were. feedback: (n, n), the weight of the error of j in the target of k at [j, k]. scales,
    zeros: (n, n_rows), of each column.
    """
    if namespace(targets) is not np:
        values, errors = compiled(_round_run)(targets, columns, feedback, scales, zeros, top)
        return values, errors
    integers, errors = np.empty_like(targets), np.empty_like(targets)
    value = np.empty_like(targets[0])
    for k, target in enumerate(targets):
        if k:
            target += weighted_sum(feedback[:k, k], errors[:k])
        np.divide(target, scales[k], out=value)
        rint(value, out=value)
        value += zeros[k]
        clip(value, 0.0, top)
        integers[k] = value
        value -= zeros[k]
        value *= scales[k]
        np.subtract(columns[k], value, out=errors[k])
    return integers, errors


def _round_run(targets: Any, columns: Any, feedback: Any, scales: Any, zeros: Any, top: float) -> tuple[Any, Any]:
    xp = namespace(targets)
    integers: list[Any] = []
    errors: list[Any] = []
    for k in range(len(targets)):
        target = targets[k]
        if k:
            target = target + weighted_sum(feedback[:k, k], errors)
        integers.append(xp.clamp(xp.round(target / scales[k]) + zeros[k], 0.0, top))
        errors.append(columns[k] - (integers[k] - zeros[k]) * scales[k])
    return xp.stack(integers), xp.stack(errors)


def descend_run(slopes: Array, levels: Array, step: Array, gram: Array, top: float) -> Array:
    """Move the levels (n, n_rows) of a run to the least error, one column after another; the changes of the weights.

    slopes: float32 (n, n_rows), half of the error's derivative by each weight; numpy's are changed. levels: changed.
    step: (n_rows,). gram: (n, n), the run's own block.
    """
    if namespace(slopes) is not np:
        moved, changes = compiled(_descend_run)(slopes, levels, step, gram, top)
        levels[:] = moved
        lowered: Array = changes
        return lowered
    changes = np.empty_like(slopes)
    for k, slope in enumerate(slopes):
        if k:
            slope += weighted_sum(gram[k, :k], changes[:k])
        slope /= -gram[k, k] * step
        slope += levels[k]
        rint(slope, out=slope)
        clip(slope, 0.0, top)
        np.subtract(slope, levels[k], out=changes[k])
        changes[k] *= step
        levels[k] = slope
    return changes


def _descend_run(slopes: Any, levels: Any, step: Any, gram: Any, top: float) -> tuple[Any, Any]:
    xp = namespace(slopes)
    moved: list[Any] = []
    changes: list[Any] = []
    for k in range(len(slopes)):
        slope = slopes[k]
        if k:
            slope = slope + weighted_sum(gram[k, :k], changes)
        moved.append(xp.clamp(xp.round(slope / (-gram[k, k] * step) + levels[k]), 0.0, top))
        changes.append((moved[k] - levels[k]) * step)
    return xp.stack(moved), xp.stack(changes)


@cache
def compiled(run: _F) -> _F:
    """The run compiled by torch; as it is where torch cannot compile (no C compiler, no Triton): see `failure`."""
    fast: Callable[..., Any] | None = None

    def call(*arguments: Any) -> Any:
        nonlocal fast
        if _failures:
            return run(*arguments)
        try:
            if fast is None:
                fast = _compile(run)
            return fast(*arguments)
        except Exception as error:  # the compiler's errors are of many classes; the run itself raises none
            if is_full(error):
                raise
            _failures.append(f"{type(error).__name__}: {' '.join(str(error).split())}")
        return run(*arguments)

    return call  # type: ignore[return-value]


_failures: list[str] = []


def failure() -> str | None:
    """Why torch could not compile the runs of this process; None if it could, or has not tried."""
    return _failures[0] if _failures else None


def _compile(run: Callable[..., Any]) -> Callable[..., Any]:
    import torch
    import torch._dynamo.config
    import torch._inductor.config

    # the compiler recommends TF32, which would spoil the sums
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    # one kernel a run: processes that compile several at once would cost more than they save
    torch._inductor.config.compile_threads = 1
    # otherwise the compiler leaves out that scales are rounded to float16
    torch._inductor.config.emulate_precision_casts = True
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    fast: Callable[..., Any] = torch.compile(run, dynamic=True)
    return fast
