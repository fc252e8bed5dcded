"""The factor of a damped Gram matrix against float64, and what it refuses."""

import numpy as np
import pytest

from quantkit.errors import CalibrationError
from quantkit.quant import factor as factor_module
from quantkit.quant.factor import Damping, cholesky, factor, usual_damp
from quantkit.workers import Workers
from tests.quant.calibrated import gram, inputs, weight


@pytest.mark.parametrize("act_order", [True, False])
def test_the_factor_times_itself_is_the_damped_gram_matrix_in_its_order(act_order: bool) -> None:
    h = gram(inputs(400, 96))
    made = factor(h, 400, Damping(0.03, 0.5), act_order=act_order)
    damped = h + np.diag(0.5 * np.diagonal(h) + 0.03 * 1.5 * np.diagonal(h).mean())
    assert np.allclose(made.gram, damped, rtol=1e-6)
    order = np.argsort(-np.diagonal(h), kind="stable") if act_order else np.arange(96)
    assert np.array_equal(made.order, order)
    triangle = (made.feedback.astype(np.float64) + np.eye(96)) * made.pivots[order]
    assert np.array_equal(triangle, np.triu(triangle))
    assert np.abs(triangle @ triangle.T - damped[np.ix_(order, order)]).max() < 1e-6 * damped.max()


def test_the_loss_of_the_factor_is_the_output_error() -> None:
    made, e = factor(gram(inputs(400, 96)), 400), weight(1, 96)[0].astype(np.float64)
    ordered = e[made.order]
    loss = np.sum(made.pivots[made.order] ** 2 * (ordered + made.feedback.T @ ordered) ** 2)
    assert loss == pytest.approx(e @ made.gram @ e, rel=1e-5)


def test_a_scaled_factor_is_that_of_the_scaled_input() -> None:
    x = inputs(400, 96)
    s = np.exp(np.random.default_rng(2).uniform(-1, 1, 96)).astype(np.float32)
    made, damped = factor(gram(x), 400).scaled(s), factor(gram(x), 400).gram
    triangle = (made.feedback.astype(np.float64) + np.eye(96)) * made.pivots[made.order]
    expected = damped / np.outer(s, s)
    assert np.allclose(made.gram, expected, rtol=1e-5, atol=0)
    assert np.abs(triangle @ triangle.T - expected[np.ix_(made.order, made.order)]).max() < 1e-6 * expected.max()


def test_damping_falls_with_the_number_of_tokens() -> None:
    assert [usual_damp(1024, count) for count in (1, 1024, 4096, 1 << 20)] == [1.0, 0.5, 0.125, 0.05]
    assert factor(gram(inputs(200, 64)), 200).damp == pytest.approx(0.16)


def test_statistics_that_cannot_be_used_are_told() -> None:
    h = gram(inputs(300, 64))
    with pytest.raises(CalibrationError, match=r"no token .* reached x\.y; calibrate on a longer text"):
        factor(0 * h, 0, name="x.y")
    for bad in (np.nan, np.inf):
        broken = h.copy()
        broken[3, 5] = bad
        with pytest.raises(CalibrationError, match=r"not finite in x\.y"):
            factor(broken, 300, name="x.y")
    with pytest.raises(CalibrationError, match=r"x\.y is zero"):
        factor(0 * h, 300, name="x.y")
    with pytest.raises(CalibrationError, match=r"x\.y cannot be factored"):
        factor(np.where(np.eye(64, dtype=bool), h, 1e3 * h.max()).astype(np.float32), 300, name="x.y")


def test_damping_is_raised_where_the_factorisation_needs_it_and_told() -> None:
    h = gram(inputs(20, 64))
    h -= 0.02 * np.diagonal(h).mean() * np.eye(64, dtype=np.float32)  # as rounding errors leave a singular matrix
    raised = factor(h, 20, Damping(0.01))
    assert raised.damp == pytest.approx(0.1) and raised.raised
    sound = factor(gram(inputs(20, 64)), 20, Damping(0.01))
    assert sound.damp == 0.01 and not sound.raised


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_a_factor_in_panels_is_the_factor(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Panels are 128 wide in use; 24 here, so that several of them and a shorter last one take part."""
    _narrow_panels(monkeypatch)
    h = gram(inputs(400, 130)) + np.eye(130, dtype=np.float32)
    with Workers(threads) as workers:
        triangle = cholesky(h, workers)
    # The backward error is that of float32; the factor itself may move with the condition of the matrix.
    assert np.abs(triangle.astype(np.float64) @ triangle.astype(np.float64).T - h).max() < 3e-7 * h.max()
    assert np.array_equal(triangle, np.tril(triangle))
    assert np.array_equal(triangle, cholesky(h))


def test_a_matrix_in_panels_that_is_not_positive_definite_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _narrow_panels(monkeypatch)
    h = gram(inputs(400, 130))
    h[100, 100] = -1.0
    with pytest.raises(np.linalg.LinAlgError):
        cholesky(h)


def test_a_matrix_in_panels_that_needs_more_damping_is_factored_from_its_own_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first attempt is made in place and fails in its last panels."""
    _narrow_panels(monkeypatch)
    h = gram(inputs(20, 130))
    h -= 0.02 * np.diagonal(h).mean() * np.eye(130, dtype=np.float32)
    raised = factor(h, 20, Damping(0.01))
    assert raised.damp == pytest.approx(0.1) and raised.raised
    again = factor(h, 20, Damping(raised.damp))
    assert np.array_equal(raised.feedback, again.feedback) and np.array_equal(raised.pivots, again.pivots)


def _narrow_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("_PANEL", 24), ("_TILE", 48), ("_LEAST_BLOCKED", 24)):
        monkeypatch.setattr(factor_module, name, size)
