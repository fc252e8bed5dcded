"""Coordinate descent against a plain loop in float64, and against what it must never do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantkit.quant.descent import Levels, descend
from quantkit.quant.factor import factor
from quantkit.quant.grid import Array, Grid, Quantized
from quantkit.quant.rounding import round_to_nearest
from tests.quant.calibrated import gram, inputs, weight

Doubles = NDArray[np.float64]


def error(d: Doubles, h: Array) -> float:
    return float(np.sum((d @ h.astype(np.float64)) * d))


def plainly(w: Array, made: Quantized, h: Array, sweeps: int) -> tuple[NDArray[np.int64], Doubles]:
    """Each integer, then its group's scale, by trying: the neighbour on the grid at the minimum of a parabola."""
    q, scales, zeros = made.q.astype(np.int64), made.scales.astype(np.float64), made.zeros.astype(np.int64)
    hessian, groups = h.astype(np.float64), made.groups

    def difference(row: int) -> Doubles:
        return np.asarray((q[row] - zeros[row, groups]) * scales[row, groups] - w[row].astype(np.float64))

    for row in range(len(w)):
        for _ in range(sweeps):
            for group in range(scales.shape[1]):
                for i in np.flatnonzero(groups == group):
                    slope = hessian[i] @ difference(row)
                    best = q[row, i] - slope / (hessian[i, i] * scales[row, group])
                    q[row, i] = np.clip(np.rint(best), 0, made.grid.top)
                levels = np.where(groups == group, q[row] - zeros[row, group], 0)
                slope, curve = levels @ hessian @ difference(row), levels @ hessian @ levels
                if curve > 0 and (scales[row, group] - slope / curve) * scales[row, group] > 0:
                    change = float(np.float16(scales[row, group] - slope / curve)) - scales[row, group]
                    if change * (2 * slope + change * curve) < 0:
                        scales[row, group] += change
    return q, scales


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(3, 16, True), Grid(2, -1), Grid(4, 96), Grid(8, 24)], ids=str)
@pytest.mark.parametrize("sweeps", [1, 2])
def test_a_sweep_is_each_integer_at_its_minimum_then_the_scale(grid: Grid, sweeps: int) -> None:
    w, h = weight(12, 192), factor(gram(inputs(500, 192)), 500).gram
    made = round_to_nearest(w, grid)
    if grid.symmetric:  # scales of both signs: the integers on the other side of the zero point
        made.scales[::2] *= -1
        made.q[::2] = np.clip(2 * made.zeros[::2][:, made.groups] - made.q[::2].astype(int), 0, grid.top)
    q, scales = descend(w, Levels(made.q, made.scales, made.zeros.astype(np.float32)), h, grid, sweeps)
    expected_q, expected_scales = plainly(w, made, h, sweeps)
    # A value within float32 rounding of a half may fall either way, and then moves those that follow in its row.
    rows = [row for row in range(12) if np.array_equal(q[row], expected_q[row])]
    assert len(rows) >= 9
    assert np.allclose(scales[rows], expected_scales[rows], rtol=1e-3)
    dequantized = Quantized(grid, q, scales, made.zeros, made.groups).dequantized()
    zeros = made.zeros[:, made.groups].astype(np.float64)
    known = (expected_q - zeros) * expected_scales[:, made.groups]
    assert error(dequantized - w, h) == pytest.approx(error(known - w, h), rel=0.01)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10_000),
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([8, 32, 64, -1]),
    st.booleans(),
    st.sampled_from(["plain", "zero", "outlier", "one token", "dead"]),
)
def test_no_sweep_raises_the_error_of_a_row(seed: int, bits: int, group: int, symmetric: bool, kind: str) -> None:
    x, w = inputs(1 if kind == "one token" else 100, 64, seed), weight(1 + seed % 3, 64, seed)
    if kind == "zero":
        w[:] = 0
    elif kind == "outlier":
        w[0, 5] = 300
    elif kind == "dead":
        x[:, [0, 7, 31]] = 0
    grid = Grid(bits, group, symmetric)
    h = factor(gram(x), len(x)).gram
    made = round_to_nearest(w, grid)
    before = [error((made.dequantized() - w)[row : row + 1].astype(np.float64), h) for row in range(len(w))]
    size = float(np.einsum("oi,ij,oj->", w, h, w))
    for sweeps in (1, 3):
        q, scales = descend(w, Levels(made.q, made.scales, made.zeros.astype(np.float32)), h, grid, sweeps)
        assert q.max() <= grid.top and (scales > 0).all()
        assert np.array_equal(scales, scales.astype(np.float16).astype(np.float32))
        dequantized = Quantized(grid, q, scales, made.zeros, made.groups).dequantized().astype(np.float64)
        after = [error((dequantized - w)[row : row + 1], h) for row in range(len(w))]
        assert all(a <= 1.0001 * b + 1e-6 * size for a, b in zip(after, before, strict=True))
        before = after
