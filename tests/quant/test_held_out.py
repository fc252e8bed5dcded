"""The limits of error feedback: predicted errors against rounding column by column, and what is chosen when."""

from typing import Any

import numpy as np
import pytest

from quantkit.quant.factor import SHRINK, Damping, factor, factor_gram, usual_damp
from quantkit.quant.feedback import curvature
from quantkit.quant.gptq import round_with_feedback
from quantkit.quant.grid import Array, Grid
from quantkit.quant.held_out import (
    ALONE,
    GGUF_RULE,
    LADDER,
    PACKED_RULE,
    HeldOut,
    Rule,
    Trust,
    choose_trust,
    propagated,
    step_sizes,
)
from quantkit.quant.rounding import output_error
from tests.quant.calibrated import gram, inputs, weight

N_IN, GROUP = 192, 32


def test_the_errors_of_feedback_are_those_of_one_column_after_the_other() -> None:
    factored = factor(gram(inputs(700, N_IN)), 700)
    rounding = np.random.default_rng(4).uniform(-1, 1, (5, N_IN)).astype(np.float32)
    errors = propagated(rounding, factored.feedback + np.eye(N_IN, dtype=np.float32))
    expected = np.zeros((5, N_IN))
    for k in range(N_IN):  # the target of column k is w_k + sum e_j f_jk, and it is missed by the rounding
        expected[:, k] = rounding[:, k] - expected[:, :k] @ factored.feedback[:k, k].astype(np.float64)
    np.testing.assert_allclose(errors, expected, rtol=2e-3, atol=2e-3)


def real_errors(w: Array, x: Array, held: Array) -> list[float]:
    """The error of rounding with each step of the ladder, on held-out tokens."""
    errors = []
    for shrink, damp in LADDER:
        factored = factor(gram(x), len(x), Damping(damp, shrink))
        (made,) = round_with_feedback([w], factored, Grid(4, GROUP), sweeps=0)
        errors.append(output_error(w, made.dequantized(), gram(held))[0])
    return errors


@pytest.mark.parametrize("correlated", [False, True])
def test_chance_correlations_are_trusted_less_as_the_errors_of_real_rounding_ask(correlated: bool) -> None:
    alone = np.random.default_rng(2).standard_normal((2300, N_IN)).astype(np.float32)
    tokens, w = inputs(2300, N_IN) if correlated else alone, weight(96, N_IN)
    x, held = tokens[:300], tokens[300:]
    trust = choose_trust(gram(x) + gram(held), len(tokens), HeldOut(gram(held), len(held)), step_sizes(w, GROUP))
    errors = real_errors(w, x, held)
    if correlated:
        assert errors[LADDER.index((trust.shrink, trust.damp))] < 1.1 * min(errors)
        assert trust.damp <= 0.03
        assert trust.error is not None and 0 < trust.error < 0.5
    else:
        assert errors[0] > 1.2 * errors[-1]
        assert trust in (Trust(*LADDER[-1], trust.error), ALONE)


def predicted(fitted: Array, held: Array, steps: Array, shrink: float, damp: float) -> float:
    """The error that is predicted for limits, over that without feedback: in float64, by another formula for T.

    With H = R R', R upper, H^-1 = R^-T R^-1, so the lower factor of H^-1 is R^-T. E R / diag(R) = rounding.
    """
    h = fitted.astype(np.float64)
    order = np.argsort(-np.diagonal(h), kind="stable")
    h = h[np.ix_(order, order)]
    h += shrink * np.diag(np.diagonal(h))
    h += damp * np.diagonal(h).mean() * np.eye(len(h))
    lower = np.linalg.cholesky(np.linalg.inv(h))
    rounding = np.random.default_rng(0).uniform(-1, 1, (64, len(h))).astype(np.float32) * steps
    errors = np.zeros(rounding.shape)
    errors[:, order] = (rounding[:, order] / np.diagonal(lower)) @ lower.T
    energy = [float(np.sum((some @ held.astype(np.float64)) * some)) for some in (errors, rounding)]
    return energy[0] / energy[1]


@pytest.mark.parametrize(
    ("noise", "n_tokens", "choices"),
    [(0, 500, (0, 0)), (0.5, 200, (1, 1)), (1, 200, (4, 3)), (1, 500, (2, 3)), (1, 2000, (1, 3)), (2, 500, None)],
)
@pytest.mark.parametrize("rule", [PACKED_RULE, GGUF_RULE])
def test_the_choice_is_that_of_all_limits_with_no_more_than_four_factorisations(
    rule: Rule, noise: float, n_tokens: int, choices: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def counted(*arguments: Any, damp: float, **options: Any) -> Any:
        tried.append(damp)
        return factor_gram(*arguments, damp=damp, **options)

    monkeypatch.setattr("quantkit.quant.held_out.factor_gram", counted)
    tokens, steps = inputs(n_tokens + 400, N_IN), step_sizes(weight(96, N_IN), GROUP)
    chance = np.random.default_rng(7).standard_normal(tokens.shape).astype(np.float32)
    tokens += np.float32(noise) * tokens.std(axis=0) * chance
    fitted, held = gram(tokens[:n_tokens]), gram(tokens[n_tokens:])
    trust = choose_trust(fitted + held, len(tokens), HeldOut(held, 400), steps, rule=rule)
    assert 3 <= len(tried) <= 4
    errors = [predicted(fitted, held, steps, shrink, damp) for shrink, damp in rule.limits]
    if choices is None:
        assert 1.05 * min(errors) > 1 and trust is ALONE
        return
    chosen = max(number for number, error in enumerate(errors) if error <= rule.tolerance * min(errors))
    assert chosen == choices[rule is GGUF_RULE]
    assert (trust.shrink, trust.damp) == rule.limits[chosen]
    assert trust.error == pytest.approx(errors[chosen], rel=1e-3)


@pytest.mark.parametrize(("noise", "n_tokens", "is_kept"), [(0, 500, True), (0.5, 200, False), (1, 500, True)])
def test_the_factor_that_is_kept_is_that_of_the_other_samples_with_the_chosen_limits(
    noise: float, n_tokens: int, is_kept: bool
) -> None:
    """It is lost where stronger limits seemed to be good enough, until weaker ones had a smaller error."""
    tokens, steps = inputs(n_tokens + 400, N_IN), step_sizes(weight(96, N_IN), GROUP)
    chance = np.random.default_rng(7).standard_normal(tokens.shape).astype(np.float32)
    tokens += np.float32(noise) * tokens.std(axis=0) * chance
    fitted, held = gram(tokens[:n_tokens]), gram(tokens[n_tokens:])
    arguments = (fitted + held, len(tokens), HeldOut(held, 400), steps)
    trust = choose_trust(*arguments, rule=GGUF_RULE, keep=True)
    assert trust == choose_trust(*arguments, rule=GGUF_RULE)
    assert (trust.fitted is not None) == is_kept
    if trust.fitted is None:
        return
    by = curvature(arguments[0] - held, n_tokens, damp=trust.damp, shrink=trust.shrink)
    np.testing.assert_array_equal(trust.fitted.order, by.order)
    np.testing.assert_allclose(trust.fitted.importance, by.importance, rtol=1e-4)
    np.testing.assert_allclose(np.triu(trust.fitted.feedback, 1), by.feedback, atol=1e-4)


def test_held_out_samples_of_quite_another_kind_turn_feedback_off() -> None:
    """Correlations of the opposite sign: feedback would raise the error there."""
    x, w = inputs(3000, N_IN), weight(64, N_IN)
    own = gram(x)
    signs = np.random.default_rng(1).choice([-1, 1], N_IN)
    other = np.asarray(np.diag(np.diagonal(own)) * 1.5 - own * 0.5, np.float32) * np.outer(signs, signs) / 10
    held = np.asarray(other + np.diag(np.full(N_IN, max(0.0, -np.linalg.eigvalsh(other).min()))), np.float32)
    assert choose_trust(own + held, 3300, HeldOut(held, 300), step_sizes(w, GROUP)) is ALONE
    rounded = [
        round_with_feedback([w], factor(own, 3000, Damping(damp, shrink)), Grid(4, GROUP), sweeps=0)[0].dequantized()
        for shrink, damp in ((ALONE.shrink, ALONE.damp), LADDER[0])
    ]
    alone, trusting = (output_error(w, made, held)[0] for made in rounded)
    assert alone < trusting


@pytest.mark.parametrize("held_tokens", [0, 63])
def test_without_held_out_tokens_the_limits_depend_on_the_number_of_tokens(held_tokens: int) -> None:
    h, steps = gram(inputs(400, N_IN)), np.ones(N_IN, np.float32)
    held = gram(inputs(max(1, held_tokens), N_IN, 3))
    for part in (None, held):
        trust = choose_trust(h + held, 400, HeldOut(part, held_tokens), steps)
        assert (trust.shrink, trust.damp, trust.error) == (SHRINK, usual_damp(N_IN, 400), None)


def test_an_input_that_is_always_zero_or_not_finite_is_left_to_the_factorisation() -> None:
    steps, zero = np.ones(N_IN, np.float32), np.zeros((N_IN, N_IN), np.float32)
    for h in (zero, np.full_like(zero, np.nan)):
        assert choose_trust(h, 400, HeldOut(h, 100), steps).error is None


def test_step_sizes_follow_the_largest_weight_of_each_group() -> None:
    w = np.zeros((2, 64), np.float32)
    w[0, 3], w[1, 3], w[0, 40] = -3, 4, 2
    sizes = step_sizes(w, 32)
    assert np.allclose(sizes[:32], np.sqrt(12.5)) and np.allclose(sizes[32:], np.sqrt(2))
    assert step_sizes(w[:, :40], 32).shape == (40,)
