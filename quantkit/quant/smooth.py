"""SmoothQuant (Xiao et al. 2022, arXiv 2211.10438): scales that move the outliers of activations into the weights.

A runtime rounds each token's activations to integers with one scale. A channel with outliers then leaves few levels for
all others. As in AWQ, a channel of the input is divided by s and its column of the weights multiplied by s.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantkit.quant.grid import Array

_LEVELS = np.float32(127)
_STEPS = 16
_LEAST = np.float32(1e-5)


@dataclass(frozen=True)
class SmoothScale:
    """The scale of an input.

    values: float32 (n_in,); all 1 if no scale has a smaller error.
    power: alpha of the paper; None if all are 1.
    error_before, error_after: the estimated squared error of the outputs over the sampled tokens.
    """

    values: Array
    power: float | None
    error_before: float
    error_after: float


def search_smooth_scale(
    weights: Sequence[Array], maxima: Array, rows: Array, *, ties: NDArray[np.integer] | None = None
) -> SmoothScale:
    """Search the power alpha of s = max|x|^alpha / max|w|^(1 - alpha) (equation 4), in steps of 1/16 from 0 to 1.

    weights: float32 (n_out, n_in) of each linear. maxima: float32 (n_in,), the largest |x| of each channel. rows:
    float32 (n, n_in), some inputs. ties: (n_in,); channels with the same number share a scale.

    The estimate is the output error of rounding each token's x / s and each row of w s to 8 bits. A step t has a mean
    squared error of t^2 / 12, and the errors of channels are taken as independent.
    """
    columns = np.max([np.abs(w).max(axis=0) for w in weights], axis=0)
    of_x, of_w = (_relative(_greatest(values, ties)) for values in (maxima, columns))
    squares = np.sum([np.einsum("oi,oi->i", w, w, dtype=np.float64) for w in weights], axis=0)
    energy = np.einsum("ti,ti->i", rows, rows, dtype=np.float64)

    def error_of(s: Array) -> float:
        steps_of_x = np.abs(rows / s).max(axis=1) / _LEVELS
        steps_of_w = np.concatenate([np.abs(w * s).max(axis=1) for w in weights]) / _LEVELS
        activations = np.square(steps_of_x, dtype=np.float64).sum() * float((squares * np.square(s)).sum())
        rounding = np.square(steps_of_w, dtype=np.float64).sum() * float((energy / np.square(s)).sum())
        return float(activations + rounding) / 12

    ones = np.ones_like(maxima)
    before = error_of(ones)
    best = SmoothScale(ones, None, before, before)
    for step in range(_STEPS + 1):
        power = np.float32(step / _STEPS)
        s = _centred(of_x**power / of_w ** (1 - power))
        error = error_of(s)
        if error < best.error_after:
            best = SmoothScale(s, float(power), before, error)
    return best


def _greatest(values: Array, ties: NDArray[np.integer] | None) -> Array:
    """For each channel, the largest of `values` over the channels that share its scale."""
    if ties is None:
        return values
    largest = np.zeros(int(ties.max()) + 1, np.float32)
    np.maximum.at(largest, ties, values)
    shared: Array = largest[ties]
    return shared


def _relative(values: Array) -> Array:
    return np.asarray(np.maximum(values / max(float(values.max()), 1e-30), _LEAST), np.float32)


def _centred(s: Array) -> Array:
    return np.asarray(s / np.sqrt(s.max() * s.min()), np.float32)
