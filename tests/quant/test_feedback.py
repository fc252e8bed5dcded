"""Error feedback in GGUF types: against a plain transcription of the paper, ggml's bytes; no step does harm."""

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.errors import CalibrationError
from quantkit.gguf.blocks import FORMATS, BlockFormat
from quantkit.gguf.kernels import dequantize_rows, quantize_rows
from quantkit.quant.block_search import Scales, search_scales
from quantkit.quant.feedback import (
    SWEEPS,
    Curvature,
    Solution,
    curvature,
    feed_back,
    quantize_with_feedback,
    solve,
    sweep,
    values,
)
from quantkit.quant.grid import Array
from quantkit.workers import Workers
from tests.quant.calibrated import gram, inputs, weight

KINDS = pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
N_OUT, N_IN, TOKENS = 24, 512, 900


@pytest.fixture(scope="module")
def prepared() -> Curvature:
    return curvature(gram(inputs(TOKENS, N_IN)), TOKENS, shrink=0)


def columns(n_out: int = N_OUT) -> Array:
    return np.ascontiguousarray(weight(n_out, N_IN).T)


def output_error(w: Array, made: Array, hessian: Array) -> float:
    """tr(E H E') in float64; w and made (n_in, n_rows)."""
    error = made.astype(np.float64) - w
    return float(np.einsum("ir,ij,jr->", error, hessian.astype(np.float64), error, optimize=True))


def nearest_by_trial(value: float, points: NDArray[np.float64]) -> float:
    return float(points[np.abs(points - value).argmin()])


def all_points(format_: BlockFormat) -> NDArray[np.float64]:
    return np.array(format_.table if format_.table else range(format_.low, format_.high + 1), np.float64)


def plainly_fed_back(format_: BlockFormat, w: Array, scales: Scales, hessian: Array, order: Array) -> Array:
    """Section 3 of the GPTQ paper, one row and one column at a time in float64, on the grid of `scales`."""
    step, base = scales.step(format_).astype(np.float64), scales.base(format_)
    points = np.zeros(w.shape)
    left, inverse = w.astype(np.float64).copy(), np.linalg.inv(hessian.astype(np.float64))
    for i in order:
        group = i // format_.group
        for row in range(w.shape[1]):
            low = 0.0 if base is None else float(base[group, row])
            if step[group, row] != 0:
                points[i, row] = nearest_by_trial((left[i, row] - low) / step[group, row], all_points(format_))
            made = step[group, row] * points[i, row] + low
            left[:, row] -= (left[i, row] - made) / inverse[i, i] * inverse[:, i]
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
        inverse[i, i] = 1
    return points.astype(np.float32)


@KINDS
def test_the_feedback_is_the_papers(kind: GGMLQuantizationType, prepared: Curvature) -> None:
    format_, w = FORMATS[kind], columns(4)
    scales = search_scales(w, prepared.importance, format_)
    points = feed_back(format_, w, scales, prepared)
    expected = plainly_fed_back(format_, w, scales, prepared.hessian, prepared.order)
    # a value within float32 rounding of a half may fall either way, and moves those that follow in its row
    made, paper = (values(format_, Solution(scales, p)) for p in (points, expected))
    errors = [output_error(w, m, prepared.hessian) for m in (made, paper)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)
    assert np.mean(points[prepared.order[:64]] != expected[prepared.order[:64]]) < 0.02


@KINDS
def test_each_step_lowers_the_output_error(kind: GGMLQuantizationType, prepared: Curvature) -> None:
    format_, w = FORMATS[kind], columns()
    importance = np.diagonal(prepared.hessian).copy()
    ggml = dequantize_rows(kind, quantize_rows(kind, np.ascontiguousarray(w.T), importance), N_IN).T
    scales = search_scales(w, prepared.importance, format_)
    solution = Solution(scales, feed_back(format_, w, scales, prepared))
    errors = [output_error(w, ggml, prepared.hessian), output_error(w, values(format_, solution), prepared.hessian)]
    for _ in range(4):
        sweep(format_, w, solution, prepared.hessian)
        errors.append(output_error(w, values(format_, solution), prepared.hessian))
    assert errors[1] < 0.35 * errors[0]
    assert errors[2] < errors[1]
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in pairwise(errors[1:]))


@KINDS
def test_every_row_gains_or_keeps_its_error_in_a_sweep(kind: GGMLQuantizationType, prepared: Curvature) -> None:
    format_, w = FORMATS[kind], columns()
    solution = solve(format_, w, prepared, sweeps=0)
    before = values(format_, solution)
    sweep(format_, w, solution, prepared.hessian)
    after = values(format_, solution)
    for row in range(N_OUT):
        own = slice(row, row + 1)
        old, new = (output_error(w[:, own], made[:, own], prepared.hessian) for made in (before, after))
        assert new <= old * (1 + 1e-5)


def test_after_the_descent_no_single_level_can_be_better(prepared: Curvature) -> None:
    format_, w = FORMATS[GGMLQuantizationType.Q4_0], columns(6)
    solution = solve(format_, w, prepared, sweeps=40)
    hessian = prepared.hessian.astype(np.float64)
    error = values(format_, solution).astype(np.float64) - w
    step = np.repeat(solution.scales.step(format_), format_.group, axis=0).astype(np.float64)
    pull = hessian @ error
    for change in (-1, 1):
        moved = np.clip(solution.points + change, format_.low, format_.high) - solution.points
        gain = 2 * step * moved * pull + (step * moved) ** 2 * np.diagonal(hessian)[:, None]
        assert gain.min() > -1e-4 * output_error(w, values(format_, solution), prepared.hessian) / N_IN


@KINDS
def test_the_bytes_decode_to_what_the_solver_chose(kind: GGMLQuantizationType, prepared: Curvature) -> None:
    format_, w = FORMATS[kind], columns()
    solution = solve(format_, w, prepared, sweeps=SWEEPS)
    packed = quantize_with_feedback(kind, np.ascontiguousarray(w.T), prepared)
    decoded = dequantize_rows(kind, packed, N_IN)
    np.testing.assert_allclose(decoded, values(format_, solution).T, rtol=1e-5, atol=1e-6)
    assert np.isin(solution.points, all_points(format_)).all()
    scales, minima = solution.scales.scales, solution.scales.minima
    assert format_.least_scale <= scales.min() <= scales.max() <= format_.greatest_scale
    if minima is not None:
        assert 0 <= minima.min() <= minima.max() <= format_.greatest_minimum


@KINDS
def test_the_search_finds_better_scales_than_ggml(kind: GGMLQuantizationType) -> None:
    format_, w, importance = FORMATS[kind], columns(64), inputs(1, N_IN)[0] ** 2
    ggml = dequantize_rows(kind, quantize_rows(kind, np.ascontiguousarray(w.T), importance), N_IN).T
    scales = search_scales(w, importance, format_)
    diagonal = np.diag(importance)
    identity = Curvature(diagonal, np.arange(N_IN), np.zeros_like(diagonal), importance, 0.0)
    made = values(format_, Solution(scales, feed_back(format_, w, scales, identity)))
    assert output_error(w, made, diagonal) < 1.01 * output_error(w, ggml, diagonal)


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q5_K], ids=lambda kind: kind.name)
def test_weights_that_were_q4_k_before_keep_their_values(kind: GGMLQuantizationType, prepared: Curvature) -> None:
    """ggml's Q4_K, rounded to bf16 as a checkpoint holds it: what remains is the error of bf16."""
    of = GGMLQuantizationType.Q4_K
    lattice = dequantize_rows(of, quantize_rows(of, weight(96, N_IN)), N_IN)
    w = lattice.astype(ml_dtypes.bfloat16).astype(np.float32)
    made = dequantize_rows(kind, quantize_with_feedback(kind, w, prepared), N_IN)
    assert np.linalg.norm(made - lattice) < 0.003 * np.linalg.norm(lattice)


@KINDS
def test_rows_and_blocks_of_zeros_stay_zero(kind: GGMLQuantizationType, prepared: Curvature) -> None:
    w = weight(6, N_IN)
    w[0], w[1, :256], w[2] = 0, 0, 1e-30
    decoded = dequantize_rows(kind, quantize_with_feedback(kind, w, prepared), N_IN)
    assert np.isfinite(decoded).all()
    assert not decoded[0].any()


@KINDS
def test_inputs_that_are_always_zero_do_not_matter(kind: GGMLQuantizationType) -> None:
    x, w = inputs(TOKENS, N_IN), weight(N_OUT, N_IN)
    x[:, 32:96] = 0
    prepared = curvature(gram(x), TOKENS)
    decoded = dequantize_rows(kind, quantize_with_feedback(kind, w, prepared), N_IN)
    assert np.isfinite(decoded).all()
    assert np.abs(decoded[:, 32:96] - w[:, 32:96]).max() < np.abs(w[:, 32:96]).max()


@pytest.mark.usefixtures("blas_of_many_threads")
@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_K, GGMLQuantizationType.IQ4_XS])
def test_bytes_do_not_depend_on_the_number_of_threads(kind: GGMLQuantizationType, prepared: Curvature) -> None:
    w = weight(600, N_IN)
    made = []
    for threads in (1, 2, 7):
        with Workers(threads) as workers:
            made.append(quantize_with_feedback(kind, w, prepared, workers=workers))
    assert np.array_equal(made[0], made[1])
    assert np.array_equal(made[0], made[2])


def test_a_gram_matrix_that_cannot_be_used_is_one_sentence() -> None:
    broken = np.full((64, 64), np.nan, np.float32)
    with pytest.raises(CalibrationError, match="are not finite in the input of x"):
        curvature(broken, 5, name="the input of x")
    with pytest.raises(CalibrationError, match="no token of the calibration text reached the input of x"):
        curvature(np.eye(64, dtype=np.float32), 0, name="the input of x")
    indefinite = np.eye(64, dtype=np.float32)
    indefinite[0, 1] = indefinite[1, 0] = 100
    with pytest.raises(CalibrationError, match="cannot be factored"):
        curvature(indefinite, 5, name="the input of x")
