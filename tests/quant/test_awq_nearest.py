"""AWQ's searches: by the error they claim, never worse than nothing, ties kept, ranges by their own measure."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.errors import CalibrationError
from quantkit.quant import awq_nearest
from quantkit.quant.awq_nearest import quantize_awq, search_clip, search_scale
from quantkit.quant.grid import Array, Grid
from quantkit.quant.rounding import round_to_nearest
from tests.quant.calibrated import gram, inputs, squared_error, weight


def scaled_and_rounded(w: Array, s: Array, grid: Grid) -> Array:
    """What a runtime sees of w times s rounded to nearest, over s."""
    return round_to_nearest(w * s, grid).dequantized() / s


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(3, 64), Grid(4, -1), Grid(8, 32)], ids=str)
def test_the_errors_it_reports_are_those_of_the_outputs(grid: Grid) -> None:
    x, ws = inputs(400, 128), [weight(40, 128), weight(24, 128, 3)]
    scale = search_scale(ws, gram(x), grid)
    ones = np.ones(128, np.float32)
    for s, error in ((ones, scale.error_before), (scale.values, scale.error_after)):
        explicit = sum(squared_error(w, scaled_and_rounded(w, s, grid), x) for w in ws)
        assert error == pytest.approx(explicit, rel=1e-3)
    assert scale.values.shape == (128,) and scale.values.dtype == np.float32
    assert scale.error_after <= scale.error_before


def test_inputs_that_matter_are_scaled_up_and_the_error_falls() -> None:
    x, w, grid = inputs(400, 128), weight(64, 128), Grid(4, 32)
    x[:, [5, 70]] *= 30
    scale = search_scale([w], gram(x), grid)
    assert scale.values[[5, 70]].min() > 2 * np.median(scale.values)
    assert scale.error_after < 0.5 * scale.error_before
    assert scale.ratio > 0


def test_where_no_scale_helps_there_is_none() -> None:
    scale = search_scale([np.zeros((8, 64), np.float32)], gram(inputs(100, 64)), Grid(4, 32))
    assert (scale.values == 1).all()
    assert scale.ratio == scale.error_before == scale.error_after == 0


def test_tied_channels_share_a_scale() -> None:
    x, w = inputs(400, 96), weight(32, 96)
    ties = np.concatenate([np.arange(16) + 16 * (head // 3) for head in range(6)])
    scale = search_scale([w], gram(x), Grid(4, 32), ties=ties)
    assert scale.ratio > 0
    for tie in range(32):
        assert len(set(scale.values[ties == tie].tolist())) == 1
    assert len(set(scale.values.tolist())) == 32
    assert scale.error_after < scale.error_before


def test_rows_that_stand_for_the_rest_find_nearly_the_same_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, grid = inputs(400, 64), weight(400, 64), Grid(4, 32)
    x[:, 9] *= 20
    all_rows = search_scale([w], gram(x), grid).values
    monkeypatch.setattr(awq_nearest, "_MOST_ROWS", 160)
    few = search_scale([w], gram(x), grid).values
    errors = [squared_error(w, scaled_and_rounded(w, s, grid), x) for s in (few, all_rows)]
    assert errors[0] < 1.05 * errors[1]


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(3, -1), Grid(2, 32), Grid(4, 32, True)], ids=str)
def test_clipping_never_errs_more_group_by_group(grid: Grid) -> None:
    x, w = inputs(400, 64), weight(16, 64)
    clipped, plain = quantize_awq(w, gram(x), grid).dequantized(), round_to_nearest(w, grid).dequantized()
    size = grid.group_size(64)
    for row in range(16):
        for g in range(0, 64, size):
            part = (slice(row, row + 1), slice(g, g + size))
            group_inputs = x[:, g : g + size]
            assert squared_error(w[part], clipped[part], group_inputs) <= 1.001 * squared_error(
                w[part], plain[part], group_inputs
            )
    assert squared_error(w, clipped, x) < squared_error(w, plain, x)


def test_most_ranges_are_clipped_and_zero_points_stay_on_the_grid() -> None:
    x, w, grid = inputs(400, 64), weight(16, 64), Grid(4, 32)
    scales, zeros = search_clip(w, gram(x), grid)
    whole = round_to_nearest(w, grid).scales
    assert np.mean(scales < whole) > 0.5 and (scales < 1.1 * whole).all()
    assert np.array_equal(zeros, np.rint(zeros)) and zeros.min() >= 0 and zeros.max() <= 15


def test_scales_and_clips_together_err_less_than_either() -> None:
    x, w, grid = inputs(400, 128), weight(64, 128), Grid(4, 64)
    h = gram(x)
    s = search_scale([w], h, grid).values
    both = quantize_awq(w * s, h / np.outer(s, s), grid).dequantized() / s
    clip_alone = quantize_awq(w, h, grid).dequantized()
    assert squared_error(w, both, x) < squared_error(w, clip_alone, x)
    assert squared_error(w, both, x) < squared_error(w, scaled_and_rounded(w, s, grid), x)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10_000),
    st.sampled_from([3, 4, 8]),
    st.sampled_from([8, 32, -1]),
    st.sampled_from(["plain", "zero", "constant", "outlier", "one token", "dead", "no token"]),
)
def test_any_matrix_and_text_give_a_finite_scale_and_a_matrix_on_its_grid(
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
    elif kind == "no token":
        x[:] = 0
    grid = Grid(bits, group)
    scale = search_scale([w], gram(x), grid)
    s = scale.values
    assert np.isfinite(s).all() and s.min() > 0 and s.max() / s.min() < 1e9
    assert scale.error_after <= scale.error_before
    made = quantize_awq(w * s, gram(x) / np.outer(s, s), grid)
    assert made.q.max() <= grid.top and np.isfinite(made.scales).all() and (made.scales > 0).all()
    if kind == "zero":
        assert not made.dequantized().any()


def test_statistics_that_are_not_finite_are_told() -> None:
    h = gram(inputs(100, 64))
    h[2, 2] = np.nan
    with pytest.raises(CalibrationError, match=r"not finite in x\.y"):
        search_scale([weight(8, 64)], h, Grid(4, 32), name="x.y")
