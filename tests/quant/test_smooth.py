"""SmoothQuant's scales against the rounding of activations and weights done in full."""

import numpy as np
import pytest

from quantkit.quant.smooth import search_smooth_scale


def rounded(values: np.ndarray, axis: int) -> np.ndarray:
    step = np.abs(values).max(axis=axis, keepdims=True) / 127
    return np.rint(values / step) * step


def output_error(x: np.ndarray, weights: list[np.ndarray], s: np.ndarray) -> float:
    """The squared error of the outputs when each token of x / s and each row of w s is rounded to 8 bits."""
    return sum(float(np.square(rounded(x / s, 1) @ rounded(w * s, 1).T - x @ w.T).sum()) for w in weights)


@pytest.fixture(params=range(3))
def layer(request: pytest.FixtureRequest) -> tuple[np.ndarray, list[np.ndarray]]:
    """Inputs with a few channels of outliers, as language models have them, and two linears."""
    rng = np.random.default_rng(request.param)
    x = rng.standard_normal((200, 96)).astype(np.float32)
    x[:, rng.choice(96, 3, replace=False)] *= np.float32(40)
    return x, [rng.standard_normal((64, 96)).astype(np.float32) * np.float32(0.05) for _ in range(2)]


def test_the_scale_lowers_the_error_and_few_powers_would_lower_it_more(
    layer: tuple[np.ndarray, list[np.ndarray]],
) -> None:
    x, weights = layer
    maxima = np.abs(x).max(axis=0)
    best = search_smooth_scale(weights, maxima, x)
    error = output_error(x, weights, best.values)
    assert best.power is not None
    assert error < 0.2 * output_error(x, weights, np.ones(96, np.float32))
    columns = np.max([np.abs(w).max(axis=0) for w in weights], axis=0)
    others = [maxima**a / columns ** (1 - a) for a in np.arange(17) / 16]
    assert error < 1.2 * min(output_error(x, weights, s) for s in others)
    assert best.error_after == pytest.approx(error, rel=0.25)


def test_tied_channels_share_a_scale_and_even_inputs_keep_theirs(layer: tuple[np.ndarray, list[np.ndarray]]) -> None:
    x, weights = layer
    ties = np.arange(96) // 4
    scale = search_smooth_scale(weights, np.abs(x).max(axis=0), x, ties=ties).values
    assert (scale.reshape(24, 4) == scale[::4, None]).all()
    even = np.sign(x)
    one = search_smooth_scale([np.sign(w) for w in weights], np.abs(even).max(axis=0), even)
    assert one.power is None and (one.values == 1).all()
