"""Error feedback onto 4-bit floats and MLX's integers, against GPTQ as its paper writes it and against all points."""

import ml_dtypes
import numpy as np
import pytest

from quantkit.packed.mlx import MlxFeedback
from quantkit.quant.affine import round_affine
from quantkit.quant.factor import Damping, factor
from quantkit.quant.float4 import global_scale, nvfp4_scales
from quantkit.quant.points import AffinePoints, Float4Points, affine_points, feed_back_onto, nvfp4_points
from quantkit.quant.rounding import output_error

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def data(n_out: int = 24, n_in: int = 64, tokens: int = 400) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(0)
    mixed = random.standard_normal((n_in, n_in)) / 8 + np.eye(n_in)
    x = random.standard_normal((tokens, n_in)) @ mixed
    return random.standard_normal((n_out, n_in)).astype(np.float32), (x.T @ x).astype(np.float32)


def every_point(points: Float4Points | AffinePoints, row: int, column: int) -> np.ndarray:
    group = column // points.group
    if isinstance(points, Float4Points):
        return np.concatenate([E2M1, -E2M1]) * points.scales[row, group]
    return np.arange(points.top + 1) * points.scales[row, group] + points.biases[row, group]


def of_kind(kind: str, w: np.ndarray, importance: np.ndarray) -> Float4Points | AffinePoints:
    if kind == "nvfp4":
        return nvfp4_points(w, global_scale(float(np.abs(w).max())), importance)
    return affine_points(w, 4, importance, 32, np.dtype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("kind", ["nvfp4", "mlx"])
def test_nearest_is_the_nearest_of_all_points(kind: str) -> None:
    w, _ = data()
    points = of_kind(kind, w, np.ones(64, np.float32))
    whole = points.whole(w)
    for column in range(0, 64, 7):
        assert np.array_equal(points.nearest(w[:, column], column), whole[:, column])
        for row in range(len(w)):
            least = np.abs(every_point(points, row, column) - w[row, column]).min()
            assert np.isclose(abs(whole[row, column] - w[row, column]), least, atol=1e-6)


@pytest.mark.parametrize("kind", ["nvfp4", "mlx"])
def test_feedback_is_that_of_the_paper(kind: str) -> None:
    """arXiv 2210.17323, algorithm 1: the inverse of H is updated column by column."""
    w, gram = data()
    factored = factor(gram, 400, Damping(0.05))
    points = of_kind(kind, w, factored.pivots**2)
    rounded = feed_back_onto(w, points, factored)
    inverse, expected = np.linalg.inv(factored.gram.astype(np.float64)), np.empty_like(w)
    remaining = w.astype(np.float64)
    for column in map(int, factored.order):
        expected[:, column] = points.nearest(remaining[:, column].astype(np.float32), column)
        error = (remaining[:, column] - expected[:, column]) / inverse[column, column]
        remaining -= error[:, None] * inverse[column]
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    # a target near the middle of two points may go to the other one
    assert (rounded == expected).mean() > 0.99
    nearest = points.whole(w)
    assert output_error(w, rounded, gram)[0] < 0.7 * output_error(w, nearest, gram)[0]


def test_scales_never_have_a_larger_error_than_the_usual_ones() -> None:
    w, _ = data()
    importance = np.random.RandomState(1).uniform(0.1, 10, 64).astype(np.float32)
    overall = global_scale(float(np.abs(w).max()))
    usual = Float4Points(nvfp4_scales(w, overall).view(ml_dtypes.float8_e4m3fn).astype(np.float32) / overall, 16)
    affine = round_affine(w, 3, 32)
    of_mlx = AffinePoints(affine.scales, affine.biases, 32, 7)

    def error(points: Float4Points | AffinePoints) -> float:
        return float((importance * (points.whole(w) - w) ** 2).sum())

    assert error(nvfp4_points(w, overall, importance)) < 0.95 * error(usual)
    assert error(affine_points(w, 3, importance, 32, np.dtype(np.float32))) < 0.95 * error(of_mlx)


def test_zeros_stay_zero() -> None:
    w = np.zeros((4, 64), np.float32)
    importance = np.ones(64, np.float32)
    assert not nvfp4_points(w, global_scale(0.0), importance).whole(w).any()
    assert not affine_points(w, 4, importance, 32, np.dtype(np.float32)).whole(w).any()


def test_the_name_of_an_mlx_type_states_its_bits() -> None:
    assert MlxFeedback("mlx-3bit-gptq").bits == 3
