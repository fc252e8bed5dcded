"""AWQ (Lin et al. 2023, arXiv 2306.00978): scale the salient input channels, then clip the ranges.

Scaling a weight column by s and its input by 1/s leaves the output unchanged. After rounding, channels with a large s
have a smaller relative error. The searches for scales and for clipping minimise the output error over the calibration
text: tr(dW H dW'), H the Gram matrix.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CalibrationError
from quantkit.quant.grid import Array, Grid, Quantized
from quantkit.quant.rounding import best_ranges, group_ranges, in_groups, nearest, round_with, scales_and_zeros
from quantkit.workers import SERIAL, Workers, parts

_LEAST = np.float32(1e-4)
_POWERS = 20  # steps of r from 0 to 1
_MOST_ROWS, _WIDE, _FEWEST_ROWS = 512, 4096, 128
_WHOLE, _ROWS = 2048, 512  # ranges of up to 2048 rows are searched together, of more in parts of 512
_SHRINKS = tuple(1 - 0.06 * i for i in range(8))


@dataclass(frozen=True)
class Scale:
    """The scale of an input.

    values: float32 (n_in,); all 1 if no scale has a smaller error.
    error_before, error_after: tr(dW H dW') without and with the scale, over the searched rows of all linears.
    ratio: the power of the activations in the scale; 0 if all values are 1.
    """

    values: Array
    error_before: float
    error_after: float
    ratio: float


def search_scale(
    weights: Sequence[Array],
    gram: Array,
    grid: Grid,
    *,
    ties: NDArray[np.integer] | None = None,
    name: str = "the input",
    workers: Workers = SERIAL,
) -> Scale:
    """Search the channel scale of an input that minimises the error of its linears after rounding to nearest.

    weights: float32 (n_out, n_in) of each linear.
    gram: float32 (n_in, n_in), H, the sum of x x'.
    ties: (n_in,); channels with the same number share a scale.
    name: the name of the input in messages.

    The candidates are a^r and (a / u)^r, r from 0 to 1. a is the root mean square of a channel's activations, u that of
    its weights. Every fourth r is tried first, then those around the best. At most 512 evenly spaced rows of all
    linears are searched, and fewer for inputs wider than 4096.

    Raises CalibrationError for statistics that are not finite.
    """
    if not np.isfinite(gram).all():
        raise CalibrationError(f"the activations of the calibration text are not finite in {name}; check the model")
    rows = min(_MOST_ROWS, max(_FEWEST_ROWS, _MOST_ROWS * _WIDE // len(gram)))
    step = -(-sum(len(w) for w in weights) // rows)
    searched = np.concatenate([w[::step] for w in weights])
    act = _tied(np.diagonal(gram), ties, len(gram)) ** np.float32(0.5)
    act = np.maximum(act / max(float(act.mean()), 1e-30), _LEAST)
    squares = np.sum([np.einsum("oi,oi->i", w, w) for w in weights], axis=0)
    size = _tied(squares, ties, len(gram)) ** np.float32(0.5)
    size = np.maximum(size / max(float(size.mean()), 1e-30), _LEAST)

    ones = np.ones(len(gram), np.float32)
    bases = (act, act / size)

    def scale_of(base: int, power: int) -> Array:
        return _centred(bases[base] ** np.float32(power / _POWERS))

    def error_of(candidate: tuple[int, int]) -> float:
        return _error(searched, gram, grid, scale_of(*candidate))

    before = _error(searched, gram, grid, ones)
    errors: tuple[dict[int, float], ...] = ({}, {})  # for each base: step of the power -> error
    for step in (4, 2, 1):  # from coarse to fine around the best
        candidates = [(base, power) for base in (0, 1) for power in _powers(errors[base], step)]
        for (base, power), error in zip(candidates, workers.map(error_of, candidates), strict=True):
            errors[base][power] = error
    least, best = min(((error, (base, power)) for base in (0, 1) for power, error in errors[base].items()), key=_first)
    if not least < before:
        return Scale(ones, before, before, 0.0)
    return Scale(scale_of(*best), before, least, best[1] / _POWERS)


def _powers(tried: Mapping[int, float], step: int) -> list[int]:
    """The powers to try next: every `step`-th power first, then the two neighbours of the best."""
    if not tried:
        return list(range(0, _POWERS + 1, step))
    middle = min(tried, key=tried.__getitem__)
    return [power for power in (middle - step, middle + step) if 0 <= power <= _POWERS and power not in tried]


def _first(pair: tuple[float, tuple[int, int]]) -> float:
    return pair[0]


def quantize_awq(w: Array, gram: Array, grid: Grid, workers: Workers = SERIAL) -> Quantized:
    """Quantize a scaled matrix (n_out, n_in) with clipped ranges. `gram`: of the scaled input, H / (s s').

    The range of each group is shrunk to minimise the group's part of the output error, d' H_gg d. The full range is a
    candidate too. Weights outside the range are clipped, and all are rounded to nearest.
    """
    scales, zeros = search_clip(w, gram, grid, workers=workers)
    return round_with(w, scales, zeros, grid)


def search_clip(
    w: Array, gram: Array, grid: Grid, *, shrinks: Sequence[float] = _SHRINKS, workers: Workers = SERIAL
) -> tuple[Array, Array]:
    """Scales and zero points, float32 (n_out, n_groups). `shrinks`: the candidate factors of each group's range."""
    blocks = group_blocks(gram, grid)
    ranges = workers.map(
        lambda rows: best_ranges(w[rows], blocks, grid, shrinks),
        list(parts(len(w), len(w) if len(w) <= _WHOLE else _ROWS)),
    )
    return np.concatenate([scales for scales, _ in ranges]), np.concatenate([zeros for _, zeros in ranges])


def group_blocks(gram: Array, grid: Grid) -> Array:
    """The diagonal blocks of a Gram matrix, one for each group: (n_groups, group size, group size)."""
    n_in, size = len(gram), grid.group_size(len(gram))
    return np.stack([gram[at : at + size, at : at + size] for at in range(0, n_in, size)])


def _error(w: Array, gram: Array, grid: Grid, s: Array) -> float:
    """tr(dW H dW'), where dW is the error of w s rounded to nearest, divided by s."""
    scaled = w * s
    scales, zeros = scales_and_zeros(*group_ranges(scaled, grid), grid)
    difference = nearest(in_groups(scaled, grid), scales, zeros, grid).reshape(w.shape)
    difference -= scaled
    difference /= s
    return float(np.einsum("oi,oi->", difference @ gram, difference))


def _tied(values: Array, ties: NDArray[np.integer] | None, n_in: int) -> Array:
    """For each channel, the mean of `values` over the channels that share its scale."""
    if ties is None:
        return values.copy()
    sums = np.bincount(ties, values, minlength=n_in)
    means: Array = (sums / np.maximum(np.bincount(ties, minlength=n_in), 1))[ties].astype(np.float32)
    return means


def _centred(s: Array) -> Array:
    s = np.maximum(s, _LEAST)
    return np.asarray(s / np.sqrt(s.max() * s.min()), np.float32)
