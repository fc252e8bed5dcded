"""GPTQ against a transcription of the paper in float64, and against what it must never do worse than."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantkit.errors import CalibrationError
from quantkit.quant import gptq as gptq_module
from quantkit.quant.gptq import cholesky, gptq
from quantkit.quant.grid import Array, Grid, Quantized
from quantkit.quant.rounding import round_to_nearest
from quantkit.workers import Workers
from tests.quant.calibrated import gram, inputs, squared_error, weight

Doubles = NDArray[np.float64]


DAMP = 0.01
"""The default of `gptq`."""


def paper(w: Array, h: Array, made: Quantized, damp: float, order: NDArray[np.intp]) -> NDArray[np.int64]:
    """Integers by section 3 of the paper, plainly: after each column the inverse Hessian loses its row and column.

    The ranges are those of `made`; no blocks and no Cholesky.
    """
    left, hessian = w.astype(np.float64).copy(), h.astype(np.float64).copy()
    mean = np.diagonal(hessian).mean()
    hessian[np.diag_indices(len(h))] += damp * mean
    inverse = np.linalg.inv(hessian)
    q = np.zeros(w.shape, np.int64)
    for i in order:
        scale, zero = (each[:, made.groups[i]].astype(np.float64) for each in (made.scales, made.zeros))
        q[:, i] = np.clip(np.rint(left[:, i] / scale) + zero, 0, made.grid.top)
        error = (left[:, i] - (q[:, i] - zero) * scale) / inverse[i, i]
        left -= np.outer(error, inverse[i])
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
        inverse[i, i] = 1  # done with: its row and column are zero by now
    return q


def order_of(h: Array, act_order: bool) -> NDArray[np.intp]:
    return np.argsort(-np.diagonal(h), kind="stable") if act_order else np.arange(len(h))


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize(
    "grid", [Grid(4, 32, False, 1), Grid(4, 32, True), Grid(2, 64), Grid(3, -1, True), Grid(8, 16)], ids=str
)
@pytest.mark.parametrize("block", [128, 48])
def test_the_integers_are_the_papers(grid: Grid, act_order: bool, static: bool, block: int) -> None:
    x, w = inputs(500, 192), weight(40, 192)
    h = gram(x)
    made = gptq([w], h, 500, grid, act_order=act_order, static_groups=static, block=block).matrices[0]
    expected = paper(w, h, made, DAMP, order_of(h, act_order))
    # Values within float32 rounding of a half may fall either way, and then move those that follow in their row.
    assert np.mean(made.q != expected) < 0.01
    seen = (expected - made.zeros[:, made.groups]) * made.scales[:, made.groups]
    assert squared_error(w, made.dequantized(), x) == pytest.approx(squared_error(w, seen, x), rel=1e-3)


def test_the_errors_are_fed_to_the_right_columns() -> None:
    """A slip by one in the feedback, as mlx-lm's, costs a third more error: here a tenth more would be seen."""
    x, w, grid = inputs(1000, 128), weight(64, 128), Grid(4, 32)
    h = gram(x)
    made = gptq([w], h, 1000, grid, act_order=False).matrices[0]
    best = paper(w, h, made, DAMP, np.arange(128))
    slipped = paper(w, np.roll(h, (1, 1), (0, 1)), made, DAMP, np.arange(128))
    of = [
        squared_error(w, (q - made.zeros[:, made.groups].astype(int)) * made.scales[:, made.groups], x)
        for q in (best, slipped)
    ]
    assert of[1] > 1.1 * of[0]
    assert squared_error(w, made.dequantized(), x) < 1.002 * of[0]


@pytest.mark.parametrize("grid", [Grid(4, 32, False, 1), Grid(4, 32, True), Grid(3, 128), Grid(2, 32)], ids=str)
def test_it_errs_far_less_than_rounding_to_nearest(grid: Grid) -> None:
    x, w = inputs(1000, 128), weight(64, 128)
    nearest = squared_error(w, round_to_nearest(w, grid).dequantized(), x)
    for act_order in (True, False):
        for static in (True, False):
            made = gptq([w], gram(x), 1000, grid, act_order=act_order, static_groups=static).matrices[0]
            assert squared_error(w, made.dequantized(), x) < 0.5 * nearest


def test_groups_follow_the_order_of_columns_only_where_they_are_not_static() -> None:
    x, w = inputs(300, 64), weight(8, 64)
    h = gram(x)
    for act_order in (True, False):
        made = gptq([w], h, 300, Grid(4, 16), act_order=act_order).matrices[0]
        assert made.groups.tolist() == [i // 16 for i in range(64)]
    made = gptq([w], h, 300, Grid(4, 16), static_groups=False).matrices[0]
    order = order_of(h, True)
    assert made.groups[order].tolist() == [i // 16 for i in range(64)]


def test_matrices_that_share_an_input_come_out_as_they_would_alone() -> None:
    x, ws = inputs(300, 64), [weight(24, 64), weight(8, 64, 5), weight(1, 64, 6)]
    together = gptq(ws, gram(x), 300, Grid(4, 32)).matrices
    for w, made in zip(ws, together, strict=True):
        alone = gptq([w], gram(x), 300, Grid(4, 32)).matrices[0]
        assert made.q.shape == w.shape
        assert np.array_equal(made.scales, alone.scales) and np.array_equal(made.zeros, alone.zeros)
        assert np.mean(made.q != alone.q) < 0.01


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10_000),
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([8, 32, -1]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["plain", "zero", "constant", "outlier", "few tokens", "one token", "dead", "equal"]),
)
def test_any_matrix_and_text_give_a_result_no_worse_than_rounding(
    seed: int, bits: int, group: int, symmetric: bool, static: bool, kind: str
) -> None:
    n_tokens = {"few tokens": 5, "one token": 1}.get(kind, 200)
    x, w = inputs(n_tokens, 32, seed), weight(1 + seed % 3, 32, seed)
    if kind == "zero":
        w[:] = 0
    elif kind == "constant":
        w[:] = w[:, :1]
    elif kind == "outlier":
        w[0, 5] = 300
    elif kind == "dead":
        x[:, [0, 7, 31]] = 0
    elif kind == "equal":
        x[:] = x[:, :1]
    grid = Grid(bits, group, symmetric, 1)
    solution = gptq([w], gram(x), n_tokens, grid, static_groups=static)
    made = solution.matrices[0]
    assert made.q.max() <= grid.top and made.zeros.min() >= 1 and np.isfinite(made.scales).all()
    assert solution.damp >= DAMP
    if kind == "zero":
        assert not made.dequantized().any()
    if kind in ("few tokens", "dead"):
        nearest = squared_error(w, round_to_nearest(w, grid).dequantized(), x)
        assert squared_error(w, made.dequantized(), x) <= 1.05 * nearest
    if kind == "dead" and static and bits == 8:
        # What no token showed is rounded, not thrown away.
        assert np.abs(made.dequantized() - w).max() <= 0.06 * np.abs(w).max()


def test_statistics_that_cannot_be_used_are_told() -> None:
    x, w, grid = inputs(300, 64), weight(8, 64), Grid(4, 32)
    h = gram(x)
    with pytest.raises(CalibrationError, match=r"no token .* reached x\.y; calibrate on a longer text"):
        gptq([w], 0 * h, 0, grid, name="x.y")
    for bad in (np.nan, np.inf):
        broken = h.copy()
        broken[3, 5] = bad
        with pytest.raises(CalibrationError, match=r"not finite in x\.y"):
            gptq([w], broken, 300, grid, name="x.y")
    with pytest.raises(CalibrationError, match=r"x\.y is zero"):
        gptq([w], 0 * h, 300, grid, name="x.y")
    with pytest.raises(CalibrationError, match=r"x\.y cannot be factored"):
        gptq([w], np.where(np.eye(64, dtype=bool), h, 1e3 * h.max()).astype(np.float32), 300, grid, name="x.y")


def test_damping_is_raised_where_the_factorisation_needs_it_and_told() -> None:
    x, w, grid = inputs(20, 64), weight(8, 64), Grid(4, 32)
    h = gram(x)
    h -= 0.02 * np.diagonal(h).mean() * np.eye(64, dtype=np.float32)  # as rounding errors leave a singular matrix
    solution = gptq([w], h, 20, grid, damp=0.01)
    assert solution.damp == pytest.approx(0.1)
    assert gptq([w], gram(x), 20, grid, damp=0.01).damp == 0.01


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_a_factor_in_tiles_is_the_factor(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles are 1024 wide in use; 24 here, so that several of them and a shorter last one take part."""
    monkeypatch.setattr(gptq_module, "_TILE", 24)
    h = gram(inputs(400, 130)) + np.eye(130, dtype=np.float32)
    with Workers(threads) as workers:
        factor = cholesky(h, workers)
    # The backward error is that of float32; the factor itself may move with the condition of the matrix.
    assert np.abs(factor.astype(np.float64) @ factor.astype(np.float64).T - h).max() < 3e-7 * h.max()
    assert np.array_equal(factor, np.tril(factor))
    assert np.array_equal(factor, cholesky(h))


def test_a_matrix_in_tiles_that_is_not_positive_definite_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq_module, "_TILE", 24)
    h = gram(inputs(400, 130))
    h[100, 100] = -1.0
    with pytest.raises(np.linalg.LinAlgError):
        cholesky(h)


@pytest.mark.parametrize("static", [True, False])
def test_integers_do_not_depend_on_threads(static: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq_module, "_ROWS", 16)
    x, w = inputs(300, 128), weight(50, 128)
    results = []
    for threads in (1, 2, 7):
        with Workers(threads) as workers:
            (made,) = gptq([w], gram(x), 300, Grid(4, 32), static_groups=static, workers=workers).matrices
        results.append((made.q.tobytes(), made.scales.tobytes(), made.zeros.tobytes()))
    assert results[0] == results[1] == results[2]
