"""The target of weights whose inputs come from rounded layers: against the least-squares formula in float64."""

from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from quantkit.gguf.blocks import FORMATS
from quantkit.gguf.kernels import dequantize_rows, quantize_rows
from quantkit.quant.asymmetric import Aim, correction, factored_correction, held_out_part, holds_exactly, rows_within
from quantkit.quant.cross import Cross
from quantkit.quant.factor import Damping, factor
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
    cross = Cross((x - seen).T @ seen)
    of = curvature(gram(seen), N_TOKENS, shrink=shrink, damp=damp)
    w = weight(300, N_IN)
    with Workers(3) as workers:
        made = correction(cross, of, N_IN, workers).of(np.eye(N_IN, dtype=np.float32))
        fewer = correction(cross, of, N_IN - 1, workers).of(w, workers)
    hessian = gram(seen).astype(np.float64)
    diagonal = np.diagonal(hessian) * (1 + shrink)
    np.fill_diagonal(hessian, diagonal + damp * diagonal.mean())
    expected = cross.sums.astype(np.float64) @ np.linalg.inv(hessian)
    np.testing.assert_allclose(made, expected, atol=2e-4 * np.abs(expected).max())
    change = w.astype(np.float64) @ expected
    np.testing.assert_allclose(fewer, change, atol=2e-4 * np.abs(change).max())
    np.testing.assert_array_equal(made, correction(cross, of, N_IN).of(np.eye(N_IN, dtype=np.float32)))
    np.testing.assert_array_equal(fewer, correction(cross, of, N_IN - 1).of(w))


def test_corrected_weights_give_outputs_nearer_to_the_sources() -> None:
    x, seen = rounded_inputs()
    w = weight(48, N_IN)
    by = correction(Cross((x - seen).T @ seen), curvature(gram(seen), N_TOKENS, shrink=0.1, damp=0.01), 48)
    plain, corrected = (np.linalg.norm(x @ w.T - seen @ target.T) for target in (w, w + by.of(w)))
    assert corrected < 0.5 * plain


def test_a_part_of_the_states_error_is_made_up_for() -> None:
    x, seen = rounded_inputs()
    w, states = weight(48, N_IN), 0.3 * (x @ weight(48, N_IN)[::-1].T)
    cross = Cross((x - seen).T @ seen, residual=states.T @ seen)
    by = curvature(gram(seen), N_TOKENS, shrink=0.1, damp=0.01)
    with Workers(3) as workers:
        made = correction(cross, by, 48, workers).of(w, workers)
        np.testing.assert_array_equal(made, correction(cross, by, N_IN + 1, workers).of(w, workers))
    rows = slice(7, 45, 3)
    np.testing.assert_allclose(correction(cross, by, 48).of(w[rows], rows=rows), made[rows], atol=1e-6)
    wanted = x @ w.T + states
    plain, corrected = (np.linalg.norm(wanted - seen @ target.T) for target in (w, w + made))
    assert corrected < 0.5 * plain


@pytest.mark.parametrize(
    ("rows", "some"), [((None, None, 3), (5, 20, 2)), ((4, 30, 2), (1, None, 3)), ((4, 30), (2, 90))]
)
def test_rows_of_rows(rows: tuple[int | None, ...], some: tuple[int | None, ...]) -> None:
    numbers = np.arange(50)
    outer, inner = slice(*rows), slice(*some)
    np.testing.assert_array_equal(numbers[rows_within(outer, inner)], numbers[outer][inner])


def part_of(x: Array, seen: Array) -> float:
    """The part of the change of 40 rows, with every fourth block of 50 tokens held out."""
    held = np.arange(len(x)) // 50 % 4 == 3
    crosses = [Cross((x[some] - seen[some]).T @ seen[some]) for some in (slice(None), held)]
    others = curvature(gram(seen[~held]), int((~held).sum()), shrink=0.3, damp=0.03)
    return held_out_part(weight(40, N_IN), crosses[0], crosses[1], gram(seen[held]), others)


def by_chance(like: Array, size: float) -> Array:
    """Errors that nothing predicts."""
    return (size * like.std() * np.random.default_rng(7).standard_normal(like.shape)).astype(np.float32)


def test_the_part_of_a_change_is_the_best_one_for_held_out_tokens() -> None:
    x, seen = rounded_inputs()
    x = x + by_chance(x, 0.06)
    held = np.arange(len(x)) // 50 % 4 == 3
    by = curvature(gram(seen[~held]), int((~held).sum()), shrink=0.3, damp=0.03)
    w = weight(40, N_IN)
    change = correction(Cross((x[~held] - seen[~held]).T @ seen[~held]), by, 40).of(w).astype(np.float64)
    wanted, made = (x[held] - seen[held]) @ w.T.astype(np.float64), seen[held] @ change.T
    best = np.sum(wanted * made) / np.sum(made * made)
    assert 0.3 < best < 0.95
    assert part_of(x, seen) == pytest.approx(best, rel=1e-3)


def test_a_change_by_chance_is_not_made() -> None:
    seen = rounded_inputs()[1]
    assert part_of(seen + by_chance(seen, 0.1), seen) < 0.1
    assert part_of(seen, seen) == 0


@pytest.mark.parametrize("kind", FORMATS)
def test_a_type_holds_exactly_what_was_rounded_to_it_before(kind: GGMLQuantizationType) -> None:
    w = weight(64, 512)
    importance = np.ones(512, np.float32)
    assert not holds_exactly(kind, w, importance)
    if kind.name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
        rounded = dequantize_rows(kind, quantize_rows(kind, w), 512)
        assert holds_exactly(kind, rounded, importance)


def aim_of(x: Array, seen: Array, n_rows: int = 48) -> Aim:
    cross, factored = Cross((x - seen).T @ seen), factor(gram(seen), N_TOKENS, Damping(0.03, 0.3))
    return Aim(gram(seen), cross, factored_correction(cross, factored, n_rows))


def test_the_error_of_rounded_values_is_that_of_the_outputs() -> None:
    x, seen = rounded_inputs()
    w, aim = weight(48, N_IN).astype(np.float64), aim_of(x, seen)
    values = w + 0.02 * np.random.default_rng(1).standard_normal(w.shape)
    of_values, of_weights = (np.sum((x @ w.T - seen @ some.T) ** 2) for some in (values, w))
    made = aim.error(w.astype(np.float32), values.astype(np.float32))
    assert made == pytest.approx(of_values - of_weights, rel=2e-3)


@pytest.mark.parametrize("n_rows", [48, N_IN])
def test_columns_multiplied_by_a_scale_have_the_same_targets(n_rows: int) -> None:
    aim, w = aim_of(*rounded_inputs(), n_rows), weight(48, N_IN)
    scale = np.exp(np.random.default_rng(2).standard_normal(N_IN)).astype(np.float32)

    def coarse(step: Array) -> Any:
        return lambda some: [np.rint(matrix / step) * step for matrix in some]

    steps = np.full(N_IN, 0.05, np.float32)
    (plain,), (scaled,) = aim.targets([w], coarse(steps)), aim.scaled(scale).targets([w * scale], coarse(steps * scale))
    assert np.abs(plain - w).max() > 0.01 * np.abs(w).max()
    np.testing.assert_allclose(scaled / scale, plain, atol=1e-5 * np.abs(w).max())


def test_weights_stay_where_their_rounding_is_exact_or_better() -> None:
    aim, w = aim_of(*rounded_inputs()), weight(48, N_IN)
    (kept,) = aim.targets([w], list)
    assert kept is w  # rounding changes nothing

    def noisy(noise: float) -> Any:
        """A rounding that adds noise to other weights, and a little to these."""
        return lambda some: [matrix + (0.01 if np.array_equal(matrix, w) else noise) for matrix in some]

    assert aim.targets([w], noisy(1.0))[0] is w
    assert aim.targets([w], noisy(0.01))[0] is not w
    assert Aim(aim.gram).targets([w], list)[0] is w
