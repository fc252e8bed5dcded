"""The forward's arrays are numpy's or, on a GPU, torch's. This module has the functions that differ between the two.

torch takes numpy's `axis`, `keepdims` and `out`. Constants are Python's floats, which leave float32 what it is.
"""

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
"""float32, of numpy or a tensor of torch; the annotations are numpy's."""


def namespace(x: npt.NDArray[Any]) -> Any:
    """The module that has the functions for x: numpy or torch."""
    return np if isinstance(x, np.ndarray) else sys.modules["torch"]


def device(x: Any) -> Any:
    """Where x is, as `place` takes it: None for an array of numpy."""
    return None if isinstance(x, np.ndarray) else x.device


def place(values: Any, device: Any) -> Any:
    """`values` where `device` says: an array of numpy as it is, or as a tensor on a device of torch; tensors stay."""
    if device is None or not isinstance(values, np.ndarray):
        return values
    return sys.modules["torch"].tensor(values, device=device)


def fetch(x: Any) -> npt.NDArray[Any]:
    """x as an array of numpy: itself, or a tensor's values brought to the CPU."""
    if isinstance(x, np.ndarray):
        return x
    values: npt.NDArray[Any] = x.cpu().numpy()
    return values


def empty(shape: tuple[int, ...], like: Any) -> Array:
    """An array of undefined values, float32, of the kind and on the device of `like`."""
    result: Array = np.empty(shape, np.float32) if isinstance(like, np.ndarray) else like.new_empty(shape)
    return result


def product(x: Any, y: Any) -> Array:
    """The matrix product x y, float32. With y of bfloat16, x is rounded to it, and products are summed in float32."""
    if isinstance(x, np.ndarray) or x.dtype == y.dtype:
        result: Array = x @ y
        return result
    xp, halves = namespace(x), x.to(y.dtype)
    if not x.is_cuda:
        values: Array = halves.float() @ y.float()
        return values
    try:
        summed: Array = xp.mm(halves, y, out_dtype=xp.float32)
    except TypeError:  # torch before 2.8 rounds the sums too
        summed = xp.mm(halves, y).float()
    return summed


def is_bfloat16(x: Any) -> bool:
    """Whether x is a tensor of torch in bfloat16."""
    return not isinstance(x, np.ndarray) and x.dtype == namespace(x).bfloat16


def as_bfloat16(x: Any) -> Any:
    """A tensor of torch rounded to bfloat16."""
    return x.bfloat16()


def ascending(x: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Indices along the last axis, the smallest first, the earlier first of equals."""
    xp = namespace(x)
    order: npt.NDArray[np.int64] = xp.argsort(x, axis=-1, **({"kind": "stable"} if xp is np else {"stable": True}))
    return order


def taken(x: Array, indices: npt.NDArray[np.int64], axis: int = -1) -> Array:
    """The values of x along an axis at `indices`."""
    xp = namespace(x)
    values: Array = np.take_along_axis(x, indices, axis) if xp is np else xp.take_along_dim(x, indices, axis)
    return values


def repeated(x: Any, times: int) -> Any:
    """Each row of x `times` times, one after another."""
    xp = namespace(x)
    values: Any = np.repeat(x, times, axis=0) if xp is np else xp.repeat_interleave(x, times, 0)
    return values


def rint(x: Array, out: Array) -> None:
    """Round to the nearest integer, halves to even, into `out`."""
    xp = namespace(x)
    (xp.rint if xp is np else xp.round)(x, out=out)


def clip(x: Array, low: float | Array, high: float | Array) -> None:
    """Limit x in place; both limits are numbers, or both are arrays that broadcast to x."""
    xp = namespace(x)
    (xp.clip if xp is np else xp.clamp)(x, low, high, out=x)


def at_least(x: Array, least: float) -> Array:
    """The larger of each value and `least`."""
    xp = namespace(x)
    values: Array = xp.maximum(x, least) if xp is np else xp.clamp(x, min=least)
    return values


def bounded(x: Array, low: Any, high: Any) -> Array:
    """x limited to numbers, of torch also to tensors that broadcast to it; what is not a number becomes `low`."""
    xp = namespace(x)
    if xp is np:
        return np.asarray(np.fmin(np.fmax(x, np.float32(low)), np.float32(high)))
    above = xp.where(x > low, x, low)
    values: Array = xp.where(above < high, above, high)
    return values


def where(mask: npt.NDArray[np.bool_], x: Any, y: Array | float) -> Array:
    """x where `mask`, otherwise y, float32."""
    xp = namespace(x)
    values: Array = xp.where(mask, x, np.float32(y) if xp is np and isinstance(y, float) else y)
    return values


def put_where(target: Array, mask: npt.NDArray[np.bool_], values: Array | float) -> None:
    """Set `target` to `values` where `mask`."""
    if namespace(target) is np:
        np.copyto(target, values, where=mask)
    else:
        target.copy_(namespace(target).where(mask, values, target))  # type: ignore[attr-defined]


def divided(x: Array, y: Array, mask: npt.NDArray[np.bool_], otherwise: float) -> Array:
    """x / y where `mask`, and `otherwise` elsewhere."""
    xp = namespace(x)
    if xp is np:
        return np.asarray(np.divide(x, y, out=np.full_like(x, otherwise), where=mask))
    values: Array = xp.where(mask, x / xp.where(mask, y, 1.0), otherwise)
    return values


def to_bytes(x: Any) -> npt.NDArray[np.uint8]:
    """Integers from 0 to 255 as uint8."""
    if namespace(x) is np:
        return np.asarray(x.astype(np.uint8))
    values: npt.NDArray[np.uint8] = x.to(namespace(x).uint8)
    return values


def to_small_integers(x: Any) -> Any:
    """Integers from -128 to 127 as int8, of torch only: they are fetched in a fourth of the time."""
    return x if isinstance(x, np.ndarray) else x.to(namespace(x).int8)


def empty_bytes(shape: tuple[int, int], like: Array) -> npt.NDArray[np.uint8]:
    """Undefined values of uint8, of the kind and on the device of `like`."""
    if namespace(like) is np:
        return np.empty(shape, np.uint8)
    values: npt.NDArray[np.uint8] = like.new_empty(shape, dtype=namespace(like).uint8)  # type: ignore[attr-defined]
    return values


def to_floats(x: Any) -> Array:
    """A copy as float32."""
    if namespace(x) is np:
        return np.asarray(x.astype(np.float32))
    values: Array = x.to(namespace(x).float32, copy=True)
    return values


def through_float16(x: Any) -> Array:
    """float32 values rounded to float16."""
    if namespace(x) is np:
        return np.asarray(x.astype(np.float16).astype(np.float32))
    values: Array = x.half().float()
    return values


def contiguous(x: Any) -> Any:
    """x in row-major order; a copy only if it is not."""
    return np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x.contiguous()


def copied(x: Any) -> Any:
    """A copy."""
    return x.copy() if isinstance(x, np.ndarray) else x.clone()


def total(x: Array) -> float:
    """The sum of all values, in float64."""
    xp = namespace(x)
    return float(x.sum(dtype=xp.float64))


def mean(x: Array) -> float:
    """The mean of all values, in float64."""
    xp = namespace(x)
    return float(x.mean(dtype=xp.float64))


def inner_product(a: Array, b: Array) -> float:
    """The sum of a b over all values, in float64."""
    if namespace(a) is np:
        return float(np.einsum("oi,oi->", a, b, dtype=np.float64))
    return total(a * b)


def square(matrix: Array, order: npt.NDArray[np.integer]) -> Array:
    """The rows and columns of a square matrix in `order`."""
    if namespace(matrix) is np:
        # row by row: one index for all entries takes twice the time, two steps twice the memory
        result = np.empty((len(order), len(order)), matrix.dtype)
        for place_, row in zip(result, order, strict=True):
            np.take(matrix[row], order, out=place_, mode="clip")
        return result
    values: Array = matrix[order][:, order]
    return values


def set_diagonal(matrix: Any, values: Array) -> None:
    """Set the diagonal of a square matrix."""
    if namespace(matrix) is np:
        np.fill_diagonal(matrix, values)
    else:
        matrix.diagonal().copy_(values)


def weighted_sum(weights: Array, rows: Any) -> Array:
    """The sum of rows (n, width) times `weights` (n,). Rows of torch are added one by one, which a compiler fuses."""
    if namespace(rows) is np:
        return np.asarray(weights @ rows)
    summed: Array = rows[0] * weights[0]
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        summed = summed + row * weight
    return summed


def erf(x: Array) -> Array:
    """The error function within 6e-7; numpy has none (Abramowitz and Stegun, 7.1.26)."""
    xp = namespace(x)
    if xp is not np:
        exact: Array = xp.erf(x)
        return exact
    size = np.abs(x)
    t = size * 0.3275911
    t += 1.0
    np.reciprocal(t, out=t)
    polynomial = t * 1.061405429
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        polynomial += coefficient
        polynomial *= t
    size *= -size
    polynomial *= np.exp(size, out=size)
    np.subtract(1.0, polynomial, out=polynomial)
    return np.copysign(polynomial, x, out=polynomial)
