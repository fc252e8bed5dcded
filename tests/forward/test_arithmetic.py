import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest

from quantkit.forward.arithmetic import activation, normalise, sigmoid, turn
from quantkit.forward.parts import Norm

X = np.concatenate([np.linspace(-12, 12, 4001), [-1e4, -88.8, -0.0, 0.0, 1e-30, 88.8, 1e4]]).astype(np.float32)


def silu(x: float) -> float:
    return x / (1 + math.exp(-x)) if x > -700 else 0.0


def gelu(x: float) -> float:
    return x * math.erfc(-x / math.sqrt(2)) / 2


def gelu_tanh(x: float) -> float:
    return x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    ("name", "exact"), [("silu", silu), ("gelu", gelu), ("gelu_new", gelu_tanh), ("relu", lambda x: max(x, 0.0))]
)
def test_activations_are_exact_to_float32_and_leave_their_input_alone(
    name: str, exact: Callable[[float], float]
) -> None:
    x = X.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        actual = activation(name)(x)
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(x, X)
    expected = np.array([exact(float(value)) for value in X])
    # erf and tanh are off by a few units of the last place of 1
    np.testing.assert_array_less(np.abs(actual - expected), 4e-7 * (1 + np.abs(X)))


def test_sigmoid_is_exact_to_float32() -> None:
    expected = 1 / (1 + np.exp(-np.clip(X.astype(np.float64), -700, 700)))
    np.testing.assert_allclose(sigmoid(X), expected, atol=2e-7)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms_follow_their_formula_and_leave_their_input_alone(kind: str) -> None:
    rng = np.random.default_rng(7)
    x, weight, bias = (rng.normal(1.0, 3.0, size).astype(np.float32) for size in ((5, 96), 96, 96))
    before = x.copy()
    normalized = normalise(x, weight, bias, Norm("rms" if kind == "rms" else "layer", offset=1.0), 1e-3)
    np.testing.assert_array_equal(x, before)
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=-1, keepdims=True) if kind == "layer" else wide
    expected = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-3) * (weight + 1.0) + bias
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("pairs", ["half", "neighbours"])
def test_turning_is_multiplication_by_a_complex_number_and_spares_the_rest(pairs: str) -> None:
    rng = np.random.default_rng(8)
    x = rng.normal(size=(2, 3, 10)).astype(np.float32)
    angles = rng.normal(size=(3, 4))
    rotated = turn(x, np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32), pairs)
    one, other = (slice(0, 4), slice(4, 8)) if pairs == "half" else (slice(0, 8, 2), slice(1, 8, 2))
    expected = (x[..., one] + 1j * x[..., other]) * np.exp(1j * angles)
    np.testing.assert_allclose(rotated[..., one], expected.real, atol=1e-6)
    np.testing.assert_allclose(rotated[..., other], expected.imag, atol=1e-6)
    np.testing.assert_array_equal(rotated[..., 8:], x[..., 8:])
