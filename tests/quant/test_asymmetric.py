"""The target of weights whose inputs come from rounded layers: against the least-squares formula in float64."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from quantkit.gguf.blocks import FORMATS
from quantkit.gguf.kernels import dequantize_rows, quantize_rows
from quantkit.quant.asymmetric import correction, holds_exactly
from quantkit.quant.feedback import curvature
from quantkit.quant.grid import Array
from quantkit.workers import Workers
from tests.quant.calibrated import gram, inputs, weight

N_IN, N_TOKENS = 320, 900


def rounded_inputs() -> tuple[Array, Array]:
    """Inputs of the source (n, n_in), and the same with errors that correlate with them."""
    x, random = inputs(N_TOKENS, N_IN), np.random.default_rng(3)
    mixing = (0.03 * random.standard_normal((N_IN, N_IN))).astype(np.float32)
    return x, x + x @ mixing / np.float32(np.sqrt(N_IN))


@pytest.mark.parametrize(("shrink", "damp"), [(0.3, 0.03), (1.5, 0.5)])
def test_the_correction_is_the_formula_of_the_paper(shrink: float, damp: float) -> None:
    x, seen = rounded_inputs()
    cross = (x - seen).T @ seen
    of = curvature(gram(seen), N_TOKENS, shrink=shrink, damp=damp)
    with Workers(3) as workers:
        made = correction(cross, of, workers)
    hessian = gram(seen).astype(np.float64)
    diagonal = np.diagonal(hessian) * (1 + shrink)
    np.fill_diagonal(hessian, diagonal + damp * diagonal.mean())
    expected = cross.astype(np.float64) @ np.linalg.inv(hessian)
    np.testing.assert_allclose(made, expected, atol=2e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(made, correction(cross, of))


def test_corrected_weights_give_outputs_nearer_to_the_sources() -> None:
    x, seen = rounded_inputs()
    w = weight(48, N_IN)
    by = correction((x - seen).T @ seen, curvature(gram(seen), N_TOKENS, shrink=0.1, damp=0.01))
    plain, corrected = (np.linalg.norm(x @ w.T - seen @ target.T) for target in (w, w + w @ by))
    assert corrected < 0.5 * plain


@pytest.mark.parametrize("kind", FORMATS)
def test_a_type_holds_exactly_what_was_rounded_to_it_before(kind: GGMLQuantizationType) -> None:
    w = weight(64, 512)
    importance = np.ones(512, np.float32)
    assert not holds_exactly(kind, w, importance)
    if kind.name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
        rounded = dequantize_rows(kind, quantize_rows(kind, w), 512)
        assert holds_exactly(kind, rounded, importance)
