"""Scales for weights that were rounded before: against the scales of the usual search, in each block."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from quantkit.gguf.blocks import FORMATS, BlockFormat
from quantkit.gguf.kernels import dequantize_rows, quantize_rows
from quantkit.quant.asymmetric import correction, gains
from quantkit.quant.block_kernels import NUMPY, steps
from quantkit.quant.block_search import Scales, nearest_points
from quantkit.quant.cross import Cross
from quantkit.quant.feedback import curvature, quantize_with_feedback
from quantkit.quant.grid import Array
from quantkit.quant.lattice import lies_on_lattice, search_scales
from tests.quant.calibrated import gram, inputs, weight

N_OUT, N_IN, TOKENS = 40, 512, 900
RATIOS = {T.Q8_0: 0.5, T.Q5_K: 0.2, T.Q4_K: 0.8, T.Q6_K: 0.85, T.Q5_0: 0.95}
"""Squared errors over those of the usual search, at most."""


@pytest.fixture(scope="module")
def rounded() -> Array:
    """Weights that were rounded to Q4_1, and then to bfloat16, as those of many checkpoints are."""
    values = dequantize_rows(T.Q4_1, quantize_rows(T.Q4_1, weight(N_OUT, N_IN)), N_IN)
    halves = (values.view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)
    return halves.view(np.float32)


def errors(w: Array, importance: Array, scales: Scales, format_: BlockFormat) -> Array:
    """The weighted squared error of each block, with the nearest level of every weight: (n_blocks, n_rows)."""
    step, base = scales.step(format_), scales.base(format_)
    step, base = (0 if part is None else np.repeat(part, format_.group, axis=0) for part in (step, base))
    off = nearest_points((w - base) / np.where(step == 0, 1, step), format_) * step + base - w
    squared = importance[:, None] * off.astype(np.float64) ** 2
    return squared.reshape(-1, format_.block, w.shape[1]).sum(axis=1)


def test_weights_of_few_values_are_recognized(rounded: Array) -> None:
    assert lies_on_lattice(rounded)
    assert not lies_on_lattice(weight(N_OUT, N_IN))


@pytest.mark.parametrize("kind", RATIOS, ids=lambda kind: kind.name)
def test_scales_of_a_lattice_have_a_smaller_error_than_the_usual_ones(kind: T, rounded: Array) -> None:
    format_, w = FORMATS[kind], np.ascontiguousarray(rounded.T)
    importance = np.exp(np.random.default_rng(5).standard_normal(N_IN)).astype(np.float32)
    made, usual = (
        errors(w, importance, scales, format_)
        for scales in (search_scales(w, importance, format_, steps()), steps().search_scales(w, importance, format_))
    )
    assert (made <= usual * (1 + 1e-4) + 1e-12).all() or kind == T.Q6_K
    assert made.sum() < RATIOS[kind] * usual.sum()
    ggml = dequantize_rows(kind, quantize_rows(kind, rounded, importance), N_IN)
    assert made.sum() < RATIOS[kind] * float((importance * (ggml - rounded) ** 2).sum())


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
def test_other_weights_and_types_keep_the_usual_scales(kind: T, rounded: Array) -> None:
    format_, importance = FORMATS[kind], np.ones(N_IN, np.float32)
    for of in (weight(N_OUT, N_IN), *(() if kind in RATIOS else (rounded,))):
        w = np.ascontiguousarray(of.T)
        made, usual = search_scales(w, importance, format_, steps()), steps().search_scales(w, importance, format_)
        for name in ("d", "dmin", "scales", "minima"):
            np.testing.assert_array_equal(getattr(made, name), getattr(usual, name))


@pytest.mark.parametrize("kind", RATIOS, ids=lambda kind: kind.name)
def test_rows_of_zeros_and_of_tiny_or_large_values_stay_finite(kind: T, rounded: Array) -> None:
    w = np.ascontiguousarray(rounded.T)
    w[:, 0], w[:, 1], w[:32, 2] = 0, w[:, 1] * np.float32(1e-30), 0
    w[:, 3] *= np.float32(1e4)
    by = curvature(gram(inputs(TOKENS, N_IN)), TOKENS)
    made = dequantize_rows(kind, quantize_with_feedback(kind, np.ascontiguousarray(w.T), by), N_IN)
    assert np.isfinite(made).all() and (made[0] == 0).all()
    np.testing.assert_allclose(made[3], w[:, 3], atol=0.2 * np.abs(w[:, 3]).max())


@pytest.mark.parametrize("kind", RATIOS, ids=lambda kind: kind.name)
def test_c_and_numpy_find_the_same_scales(kind: T, rounded: Array) -> None:
    w, importance = np.ascontiguousarray(rounded.T), np.ones(N_IN, np.float32)
    made, reference = (search_scales(w, importance, FORMATS[kind], by) for by in (steps(), NUMPY))
    for name in ("d", "dmin", "scales", "minima"):
        np.testing.assert_array_equal(getattr(made, name), getattr(reference, name))


def test_a_correction_is_taken_where_it_gains_more_than_the_lattice(rounded: Array) -> None:
    by, importance = curvature(gram(inputs(TOKENS, N_IN)), TOKENS), np.ones(N_IN, np.float32)
    change = np.random.default_rng(2).standard_normal((N_IN, N_IN)).astype(np.float32)
    small, large = (correction(Cross(change * np.float32(size) @ by.hessian), by, N_OUT) for size in (1e-5, 1e-1))
    assert not gains(T.Q5_K, rounded, small, importance)
    assert gains(T.Q5_K, rounded, large, importance)
    assert gains(T.Q5_K, weight(N_OUT, N_IN), small, importance)
    assert not gains(T.Q4_1, rounded, large, importance)
