"""Rounding to nearest: the grid's bounds, zeros that stay, float16's scales, and the error by the Gram matrix."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.errors import UnsupportedError, UsageError
from quantkit.quant.grid import Array, Grid, Quantized
from quantkit.quant.rounding import best_ranges, check_group, output_error, round_to_nearest
from tests.quant.calibrated import gram, inputs, squared_error, weight

GRIDS = [Grid(bits, group, symmetric) for bits in (2, 3, 4, 8) for group in (16, -1) for symmetric in (False, True)]


def lies_on_the_grid(made: Quantized, w: Array) -> None:
    n_groups = w.shape[1] // made.grid.group_size(w.shape[1])
    assert made.q.shape == w.shape and made.scales.shape == made.zeros.shape == (len(w), n_groups)
    assert (
        made.q.max() <= made.grid.top and made.grid.least_zero <= made.zeros.min() <= made.zeros.max() <= made.grid.top
    )
    assert (made.scales > 0).all() and np.array_equal(made.scales, made.scales.astype(np.float16).astype(np.float32))
    if made.grid.symmetric:
        assert (made.zeros == 1 << (made.grid.bits - 1)).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_an_error_is_at_most_half_a_step_or_the_last_step_of_a_symmetric_grid(grid: Grid) -> None:
    w = weight(9, 64)
    made = round_to_nearest(w, grid)
    lies_on_the_grid(made, w)
    # A zero point of its own is rounded, and a symmetric grid has one step less above zero: half a step more each.
    step = made.scales[:, made.groups]
    assert (np.abs(made.dequantized() - w) <= 1.002 * step).all()
    inner = (made.q > 0) & (made.q < grid.top)
    assert (np.abs(made.dequantized() - w)[inner] <= 0.502 * step[inner]).all()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10_000),
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([8, 32, -1]),
    st.booleans(),
    st.sampled_from([0, 1]),
    st.sampled_from(["plain", "zero", "constant", "positive", "negative", "outlier", "tiny", "huge"]),
)
def test_any_matrix_lies_on_its_grid(seed: int, bits: int, group: int, symmetric: bool, least: int, kind: str) -> None:
    w = weight(1 + seed % 3, 32, seed)
    if kind == "zero":
        w[:] = 0
    elif kind == "constant":
        w[:] = w[:, :1]
    elif kind in ("positive", "negative"):
        w = np.abs(w) if kind == "positive" else -np.abs(w)
    elif kind == "outlier":
        w[0, 3] = 1e4
    elif kind in ("tiny", "huge"):
        w *= np.float32(1e-9 if kind == "tiny" else 1e6)
    grid = Grid(bits, group, symmetric, least)
    made = round_to_nearest(w, grid)
    lies_on_the_grid(made, w)
    if kind == "zero":
        assert not made.dequantized().any()
    if kind in ("plain", "constant", "positive", "negative", "outlier"):
        # float16 has steps of 2^-24 below its normal numbers: half of one, times the integers
        subnormal = 2.0**-25 * (grid.top + 1)
        assert (np.abs(made.dequantized() - w) <= 1.01 * made.scales[:, made.groups] + subnormal).all()


def test_a_constant_row_is_nearly_exact_where_the_zero_point_is_free() -> None:
    w = np.full((2, 32), 0.3, np.float32)
    w[1] *= -1
    assert np.allclose(round_to_nearest(w, Grid(4, 32)).dequantized(), w, rtol=1e-3)
    assert np.allclose(round_to_nearest(w, Grid(4, 32, least_zero=1)).dequantized(), w, rtol=1e-3)


def test_the_error_by_the_gram_matrix_is_that_of_the_outputs() -> None:
    x, w = inputs(200, 64), weight(24, 64)
    dequantized = round_to_nearest(w, Grid(4, 16)).dequantized()
    error, share = output_error(w, dequantized, gram(x))
    assert error == pytest.approx(squared_error(w, dequantized, x), rel=1e-4)
    assert share == pytest.approx(squared_error(w, dequantized, x) / squared_error(0 * w, w, x), rel=1e-4)
    assert output_error(0 * w, 0 * w, gram(x)) == (0.0, 0.0)


@pytest.mark.parametrize("diagonal", [True, False])
def test_a_searched_range_is_the_best_of_those_asked_for_with_its_scale_refitted(diagonal: bool) -> None:
    x, w, grid = inputs(200, 32), weight(5, 32), Grid(3, 16)
    h = gram(x)
    blocks = np.stack([h[:16, :16], h[16:, 16:]])
    if diagonal:
        blocks *= np.eye(16, dtype=np.float32)
    shrinks = (1.0, 0.9, 0.8, 0.7)
    scales, zeros = best_ranges(w, np.diagonal(h).copy() if diagonal else blocks, grid, shrinks)
    refitted = 0
    for row in range(5):
        for g in range(2):
            part, block = w[row, 16 * g : 16 * g + 16].astype(np.float64), blocks[g].astype(np.float64)

            def tried(scale: float, zero: int, part=part, block=block) -> tuple[float, float, int]:  # type: ignore[no-untyped-def]
                d = (np.clip(np.rint(part / scale) + zero, 0, 7) - zero) * scale - part
                return float(d @ block @ d), scale, zero

            errors = []
            for shrink in shrinks:
                low, high = min(part.min(), 0) * shrink, max(part.max(), 0) * shrink
                scale = float(np.float16((high - low) / 7))
                errors.append(tried(scale, round(-low / scale)))
            _, scale, zero = min(errors)
            steps = np.clip(np.rint(part / scale) + zero, 0, 7) - zero
            better = tried(float(np.float16((steps @ block @ part) / (steps @ block @ steps))), zero)
            refitted += better < min(errors)
            assert (float(scales[row, g]), int(zeros[row, g])) == min(*errors, better)[1:]
    assert refitted > 0


def test_a_symmetric_range_has_the_end_with_one_integer_more_where_the_largest_magnitude_is() -> None:
    h, w, grid = np.ones(32, np.float32), weight(40, 32), Grid(3, 16, symmetric=True)
    w[0], w[1, :16] = 0, np.abs(w[1, :16])
    scales, zeros = best_ranges(w, h, grid, (1.0, 0.9))
    assert (zeros == 4).all() and (scales[2:] < 0).any() and (scales > 0).any()
    assert (scales[0] == 1).all()
    for row in range(1, 40):
        for g in range(2):
            part = w[row, 16 * g : 16 * g + 16].astype(np.float64)

            def tried(scale: float, part=part) -> tuple[float, float]:  # type: ignore[no-untyped-def]
                return float(np.sum((np.clip(np.rint(part / scale), -4, 3) * scale - part) ** 2)), scale

            peak = part[np.abs(part).argmax()]
            starts = [abs(peak) * shrink / 3.5 for shrink in (1.0, 0.9)] + [peak * shrink / -4 for shrink in (1.0, 0.9)]
            best = min(tried(float(np.float16(start))) for start in starts)
            steps = np.clip(np.rint(part / best[1]), -4, 3)
            refitted = tried(float(np.float16((steps @ part) / (steps @ steps))))
            assert tried(float(scales[row, g]))[0] == pytest.approx(min(best, refitted)[0], rel=1e-4)


@pytest.mark.parametrize(
    ("n_in", "group", "sentence"),
    [
        (576, 128, "a group size of 64, 32, 16 or -1"),
        (5461, 64, "a group size of -1"),
        (576, 1024, "a group size of 64"),
    ],
)
def test_a_width_that_the_group_does_not_divide_is_told_what_does(n_in: int, group: int, sentence: str) -> None:
    with pytest.raises(UnsupportedError, match=f"w.x has {n_in} inputs.*{group}.*{sentence}"):
        check_group(n_in, Grid(group=group), "w.x")
    check_group(n_in, Grid(group=-1), "w.x")


def test_bits_and_groups_that_no_format_has_are_refused() -> None:
    with pytest.raises(UsageError, match="5 bits are not supported"):
        check_group(64, Grid(bits=5), "w")
    with pytest.raises(UsageError, match="group size 0 is not valid"):
        check_group(64, Grid(group=0), "w")


def test_the_ratio_of_errors_does_not_depend_on_the_size_of_the_outputs() -> None:
    w, x = weight(8, 64), inputs(100, 64)
    h = gram(x)
    made = round_to_nearest(w, Grid(4, 32)).dequantized()
    (error, ratio), (small, same) = output_error(w, made, h), output_error(w, made, h * np.float32(2.0**-40))
    assert (small, same) == (pytest.approx(error * 2.0**-40), pytest.approx(ratio))
    assert ratio == pytest.approx(squared_error(w, made, x) / squared_error(w, np.zeros_like(w), x), rel=1e-3)
    assert output_error(np.zeros_like(w), made, h)[1] == 0
