"""D on the rows of the weights against D itself, in float64."""

from dataclasses import replace

import numpy as np
import pytest

from quantkit.quant.cross import Cross, basis_of
from quantkit.workers import Workers
from tests.quant.calibrated import inputs, weight

N_IN = 240


def crosses(weights: list[np.ndarray]) -> tuple[Cross, Cross, np.ndarray]:
    """Of the same tokens: D, what is summed for `weights`, and D in float64."""
    x, random = inputs(500, N_IN), np.random.default_rng(4)
    seen = x + 0.1 * random.standard_normal(x.shape).astype(np.float32)
    basis = basis_of(weights)
    assert basis is not None
    difference = x - seen
    exact = difference.T.astype(np.float64) @ seen
    return Cross(difference.T @ seen), Cross((difference @ basis.T).T @ seen, basis), exact


def assert_near(made: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(made, expected, atol=3e-5 * np.abs(expected).max())


def test_the_product_with_the_weights_is_the_same() -> None:
    weights = [weight(50, N_IN), 3 * weight(30, N_IN)[::-1]]
    plain, projected, exact = crosses(weights)
    assert projected.sums.shape == (80, N_IN)
    for some in (*weights, weights[0][7:20] * np.float32(4)):
        expected = some.astype(np.float64) @ exact
        assert_near(plain.of(some), expected)
        assert_near(projected.of(some), expected)
        assert_near(some @ projected.whole(), expected)
    assert plain.whole() is plain.sums
    order, scale = np.random.default_rng(5).permutation(N_IN), np.linspace(0.5, 3, N_IN, dtype=np.float32)
    moved = weights[0][:, order] * scale
    expected = weights[0].astype(np.float64) @ exact[:, order] / scale
    for cross in (plain, projected):
        assert_near(cross.reordered(order).divided(scale).of(moved), expected)


def test_the_sum_of_the_states_errors_is_added() -> None:
    w = weight(50, N_IN)
    plain, projected, exact = crosses([w])
    residual, rows = 30 * weight(50, N_IN)[::-1], slice(3, 40, 5)
    expected = w.astype(np.float64) @ exact + residual
    order, scale = np.random.default_rng(5).permutation(N_IN), np.linspace(0.5, 3, N_IN, dtype=np.float32)
    for cross in (plain, projected):
        added = replace(cross, residual=residual).fetched()
        assert_near(added.of(w), expected)
        assert_near(added.of(w[rows], rows), expected[rows])
        moved = added.reordered(order).divided(scale)
        assert_near(moved.of((w[:, order] * scale)[rows], rows), (expected[:, order] / scale)[rows])


def test_rows_that_depend_on_others_or_are_zero_change_nothing() -> None:
    own = weight(20, N_IN)
    weights = [own, np.zeros((5, N_IN), np.float32), own[:9] * np.float32(-2)]
    _, projected, exact = crosses(weights)
    for some in weights:
        assert_near(projected.of(some), some.astype(np.float64) @ exact)


def test_the_weights_are_used_only_where_they_have_few_rows() -> None:
    assert basis_of([weight(80, N_IN)]) is not None
    assert basis_of([weight(40, N_IN), weight(41, N_IN)]) is None
    assert basis_of([np.zeros((20, N_IN), np.float32)]) is None


@pytest.mark.parametrize("threads", [1, 3])
def test_the_basis_does_not_depend_on_the_threads(threads: int) -> None:
    wide = weight(900, 2700)
    with Workers(threads) as workers:
        made = basis_of([wide], workers)
    assert made is not None
    np.testing.assert_array_equal(made, basis_of([wide]))
    assert np.abs(made @ made.T - np.eye(900)).max() < 1e-3
