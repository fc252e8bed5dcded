"""Error feedback (GPTQ, arXiv 2210.17323) onto points that a format fixes: floats of 4 bits, MLX's affine integers.

The scales come first, each the best of a few by the error weighted as in the loss of `Factor`. Then the columns are
rounded in order, and each error is fed to the columns that follow.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from quantkit.quant.affine import round_affine
from quantkit.quant.factor import Factor
from quantkit.quant.float4 import nvfp4_scales
from quantkit.quant.grid import Array
from quantkit.quant.rounding import output_error

_BLOCK, _RUN = 128, 16
_CHECKED_ROWS = 128
_SHRINKS = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7)
# the largest weight of a group goes to 6 or below; 1.5 maps it to 4, where the points are denser
_WIDENED = (1.0, 0.94, 0.88, 0.82, 0.76, 1.12, 1.25, 1.5)
_LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_MIDDLES = (_LEVELS[1:] + _LEVELS[:-1]) / 2


class Points(Protocol):
    """The values that the weights of a matrix (n_out, n_in) can have."""

    def nearest(self, target: Array, column: int) -> Array:
        """The points nearest to `target` (n_out,) in a column."""

    def whole(self, w: Array) -> Array:
        """The points nearest to w (n_out, n_in)."""


@dataclass(frozen=True)
class Float4Points:
    """Floats of 4 bits (e2m1) times a scale for each group: float32 (n_out, n_groups), positive or 0."""

    scales: Array
    group: int

    def nearest(self, target: Array, column: int) -> Array:
        return _times_level(target, self.scales[:, column // self.group])

    def whole(self, w: Array) -> Array:
        return _times_level(w.reshape(len(w), -1, self.group), self.scales[:, :, None]).reshape(w.shape)


@dataclass(frozen=True)
class AffinePoints:
    """q * scale + bias with q from 0 to `top`; scales and biases float32 (n_out, n_groups), as they are stored."""

    scales: Array
    biases: Array
    group: int
    top: int

    def nearest(self, target: Array, column: int) -> Array:
        group = column // self.group
        return self._nearest(target, self.scales[:, group], self.biases[:, group])

    def whole(self, w: Array) -> Array:
        grouped = w.reshape(len(w), -1, self.group)
        return self._nearest(grouped, self.scales[:, :, None], self.biases[:, :, None]).reshape(w.shape)

    def integers(self, points: Array) -> NDArray[np.uint8]:
        """The integers q of points (n_out, n_in)."""
        q = (points.reshape(len(points), -1, self.group) - self.biases[:, :, None]) / self.scales[:, :, None]
        integers: NDArray[np.uint8] = np.clip(np.rint(q), 0, self.top).astype(np.uint8).reshape(points.shape)
        return integers

    def values(self, q: NDArray[np.integer[Any]]) -> Array:
        """The points with the integers q (n_out, n_in)."""
        grouped = q.astype(np.float32).reshape(len(q), -1, self.group)
        grouped *= self.scales[:, :, None]
        grouped += self.biases[:, :, None]
        return grouped.reshape(q.shape)

    def _nearest(self, w: Array, scale: Array, bias: Array) -> Array:
        q: Array = np.clip(np.rint((w - bias) / scale), np.float32(0), np.float32(self.top))
        q *= scale
        q += bias
        return q


def nvfp4_points(w: Array, overall: np.float32, importance: Array, group: int = 16) -> Float4Points:
    """NVFP4's points of w (n_out, n_in): scales of e4m3 over `overall`. `importance`: weights of errors (n_in,)."""
    candidates = (
        Float4Points(
            nvfp4_scales(w * np.float32(factor), overall, group).view(ml_dtypes.float8_e4m3fn) / overall, group
        )
        for factor in _WIDENED
    )
    best = scales = None
    for points in candidates:
        error = _group_errors(points, w, importance)
        if best is None or scales is None:
            best, scales = error, points.scales.copy()
            continue
        better = error < best
        best[better], scales[better] = error[better], points.scales[better]
    assert scales is not None
    return Float4Points(scales, group)


def affine_points(w: Array, bits: int, importance: Array, group: int, stored: np.dtype[np.generic]) -> AffinePoints:
    """MLX's scales and biases of w (n_out, n_in), or those of a narrower range, rounded to the type `stored`."""
    top = (1 << bits) - 1
    usual = round_affine(w, bits, group)

    def rounded(values: Array) -> Array:
        there: Array = values.astype(stored).astype(np.float32)
        return there

    chosen = AffinePoints(rounded(usual.scales), rounded(usual.biases), group, top)
    best = _group_errors(chosen, w, importance)
    grouped = w.reshape(len(w), -1, group)
    low, high = grouped.min(axis=2), grouped.max(axis=2)
    for shrink in _SHRINKS:
        width = (high - low) * np.float32(shrink)
        scales = rounded(np.maximum(width / np.float32(top), np.float32(1e-7)))
        points = replace(chosen, scales=scales, biases=rounded((low + high - width) / 2))
        error = _group_errors(points, w, importance)
        better = error < best
        best[better] = error[better]
        chosen.scales[better], chosen.biases[better] = points.scales[better], points.biases[better]
    return chosen


def feed_back_onto(w: Array, points: Points, factored: Factor) -> Array:
    """w (n_out, n_in) rounded column by column to points, each error fed to the columns that follow.

    If the output error would be larger than that of the nearest points, by 128 of its rows, those are returned.
    """
    order, feedback = factored.order, factored.feedback
    columns = np.ascontiguousarray(w.T[order])
    errors, values = np.empty_like(columns), np.empty_like(columns)
    n_in = len(columns)
    for start in range(0, n_in, _BLOCK):
        stop = min(start + _BLOCK, n_in)
        carried = feedback[:start, start:stop].T @ errors[:start]
        carried += columns[start:stop]
        for first in range(start, stop, _RUN):
            last = min(first + _RUN, stop)
            run = carried[first - start : last - start]
            if first > start:
                run += feedback[start:first, first:last].T @ errors[start:first]
            for k in range(first, last):
                target = run[k - first]
                if k > first:
                    target += feedback[first:k, k] @ errors[first:k]
                values[order[k]] = points.nearest(target, int(order[k]))
                np.subtract(columns[k], values[order[k]], out=errors[k])
    rounded = np.ascontiguousarray(values.T)
    nearest = points.whole(w)
    rows = slice(None, None, -(-len(w) // _CHECKED_ROWS))
    errors_of = [output_error(w[rows], matrix[rows], factored.gram)[0] for matrix in (nearest, rounded)]
    return nearest if errors_of[0] < errors_of[1] else rounded


def _times_level(w: Array, scale: Array) -> Array:
    size = np.abs(w) / np.where(scale > 0, scale, np.float32(np.inf))
    value: Array = np.copysign(_LEVELS[np.searchsorted(_MIDDLES, size)] * scale, w)
    return value


def _group_errors(points: Float4Points | AffinePoints, w: Array, importance: Array) -> Array:
    error = points.whole(w)
    error -= w
    error *= error
    error *= importance
    total: Array = error.reshape(len(w), -1, points.group).sum(axis=2)
    return total
