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


def ascending(x: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Indices along the last axis, the smallest first, the earlier first of equals."""
    xp = namespace(x)
    order: npt.NDArray[np.int64] = xp.argsort(x, axis=-1, **({"kind": "stable"} if xp is np else {"stable": True}))
    return order


def taken(x: Array, indices: npt.NDArray[np.int64]) -> Array:
    """The values of x along its last axis at `indices`."""
    xp = namespace(x)
    values: Array = np.take_along_axis(x, indices, -1) if xp is np else xp.take_along_dim(x, indices, -1)
    return values


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
