"""AWQ with feedback: its scale by the errors it claims, never worse than rounding to nearest, ties kept."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.quant.awq import search_scale
from quantkit.quant.awq_nearest import quantize_awq
from quantkit.quant.awq_nearest import search_scale as search_nearest_scale
from quantkit.quant.factor import Damping, Factor, factor
from quantkit.quant.gptq import round_with_feedback
from quantkit.quant.grid import Array, Grid
from quantkit.quant.rounding import round_to_nearest
from quantkit.workers import Workers
from tests.quant.calibrated import gram, inputs, squared_error, weight


def uneven(n_out: int, n_in: int) -> Array:
    """A matrix with some large columns, which fill the ranges of their groups: small in the input, as after a norm."""
    w = weight(n_out, n_in)
    w[:, ::16] *= 8
    return w


def damped_error(w: Array, effective: Array, factored: Factor) -> float:
    """tr(dW H dW') in float64."""
    d = effective.astype(np.float64) - w.astype(np.float64)
    return float(np.sum((d @ factored.gram.astype(np.float64)) * d))


def rounded(w: Array, s: Array, factored: Factor, grid: Grid, sweeps: int = 2) -> Array:
    (made,) = round_with_feedback([w * s], factored.scaled(s), grid, sweeps=sweeps)
    return made.dequantized() / s


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(3, 64), Grid(4, -1), Grid(8, 32)], ids=str)
def test_the_errors_it_reports_are_those_of_the_outputs(grid: Grid) -> None:
    factored, ws = factor(gram(inputs(400, 128)), 400), [uneven(40, 128), weight(24, 128, 3)]
    scale = search_scale(ws, factored, grid)
    for s, error in ((np.ones(128, np.float32), scale.error_before), (scale.values, scale.error_after)):
        explicit = sum(damped_error(w, rounded(w, s, factored, grid, sweeps=0), factored) for w in ws)
        assert error == pytest.approx(explicit, rel=0.02)
    assert scale.values.shape == (128,) and scale.values.dtype == np.float32
    assert scale.error_after <= scale.error_before


def test_a_scale_that_evens_the_columns_out_lowers_the_error() -> None:
    x, w, grid = inputs(400, 128), uneven(64, 128), Grid(4, 32)
    x[:, ::16] /= 8
    factored = factor(gram(x), 400)
    scale = search_scale([w], factored, grid)
    assert scale.error_after < 0.6 * scale.error_before
    assert scale.powers[1] > 0
    assert np.median(scale.values[::16]) < 0.5 * np.median(scale.values)


def test_the_weights_by_pivots_foresee_the_error_of_feedback() -> None:
    """The search compares candidates by this estimate, so their order must be that of the errors."""
    from quantkit.quant.awq import _weighted_error

    factored, w, grid = factor(gram(inputs(1000, 128)), 1000, Damping(shrink=0)), uneven(128, 128), Grid(4, 32)
    size = np.sqrt(np.mean(w * w, axis=0))
    estimates, errors = [], []
    for power in (0, 0.25, 0.5, 0.75, 1):
        s = (factored.pivots / size) ** np.float32(power)
        s /= np.sqrt(s.max() * s.min())
        estimates.append(_weighted_error(w, factored.pivots**2, grid, s))
        errors.append(damped_error(w, rounded(w, s, factored, grid, sweeps=0), factored))
    assert np.array_equal(np.argsort(estimates), np.argsort(errors))
    assert np.allclose(estimates, errors, rtol=0.15)


def test_where_no_scale_helps_there_is_none() -> None:
    scale = search_scale([np.zeros((8, 64), np.float32)], factor(gram(inputs(100, 64)), 100), Grid(4, 32))
    assert (scale.values == 1).all()
    assert scale.powers == (0, 0) and scale.error_before == scale.error_after == 0


@pytest.mark.parametrize("search", [search_scale, search_nearest_scale])
def test_the_size_of_the_inputs_does_not_change_the_scale(search: Callable[..., Any]) -> None:
    """Activations of some layers are small; a power of two changes no rounding."""
    w, x, grid = uneven(24, 64), inputs(200, 64), Grid(4, 32)
    x[:, ::8] *= 8
    searched = []
    for size in (1.0, 2.0**-40):
        h = gram(x * np.float32(size))
        searched.append(search([w], h if search is search_nearest_scale else factor(h, 200), grid).values)
    np.testing.assert_allclose(searched[1], searched[0], rtol=1e-5)


def test_tied_channels_share_a_scale() -> None:
    factored, w = factor(gram(inputs(400, 96)), 400), uneven(32, 96)
    ties = np.concatenate([np.arange(16) + 16 * (head // 3) for head in range(6)])
    scale = search_scale([w], factored, Grid(4, 32), ties=ties)
    assert max(scale.powers) > 0
    for tie in range(32):
        assert len(set(scale.values[ties == tie].tolist())) == 1
    assert len(set(scale.values.tolist())) == 32
    assert scale.error_after < scale.error_before


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(3, 64), Grid(2, -1)], ids=str)
def test_it_errs_far_less_than_the_papers_rounding(grid: Grid) -> None:
    x, w = inputs(1000, 128), uneven(64, 128)
    h = gram(x)
    s = search_nearest_scale([w], h, grid).values
    before = quantize_awq(w * s, h / np.outer(s, s), grid).dequantized() / s
    factored = factor(h, 1000)
    after = rounded(w, search_scale([w], factored, grid).values, factored, grid)
    assert squared_error(w, after, x) < 0.5 * squared_error(w, before, x)


@pytest.mark.usefixtures("blas_of_many_threads")
def test_the_scale_does_not_depend_on_threads() -> None:
    factored, w = factor(gram(inputs(400, 128)), 400), uneven(300, 128)
    results = []
    for threads in (1, 2, 7):
        with Workers(threads) as workers:
            results.append(search_scale([w], factored, Grid(4, 32), workers=workers).values.tobytes())
    assert results[0] == results[1] == results[2]


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10_000),
    st.sampled_from([3, 4, 8]),
    st.sampled_from([8, 32, -1]),
    st.sampled_from(["plain", "zero", "constant", "outlier", "one token", "dead"]),
)
def test_any_matrix_and_text_give_a_result_no_worse_than_rounding_to_nearest(
    seed: int, bits: int, group: int, kind: str
) -> None:
    x, w = inputs(1 if kind == "one token" else 100, 32, seed), weight(1 + seed % 3, 32, seed)
    if kind == "zero":
        w[:] = 0
    elif kind == "constant":
        w[:] = w[:, :1]
    elif kind == "outlier":
        w[0, 5] = 300
    elif kind == "dead":
        x[:, [0, 7, 31]] = 0
    grid, factored = Grid(bits, group), factor(gram(x), len(x))
    s = search_scale([w], factored, grid).values
    assert np.isfinite(s).all() and s.min() > 0 and s.max() / s.min() < 1e9
    effective = rounded(w, s, factored, grid)
    nearest = damped_error(w, round_to_nearest(w, grid).dequantized(), factored)
    assert damped_error(w, effective, factored) <= 1.0001 * nearest + 1e-9 * damped_error(w, 0 * w, factored)
    if kind == "zero":
        assert not effective.any()
