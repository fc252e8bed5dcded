"""Matrices and inputs like those of a real layer: correlated channels, a few of them large, weights with outliers."""

import numpy as np

from quantkit.quant.grid import Array


def inputs(n_tokens: int, n_in: int, seed: int = 0) -> Array:
    """X (n_tokens, n_in) float32 of half as many hidden causes as channels."""
    random = np.random.default_rng(seed)
    causes = random.standard_normal((n_tokens, n_in // 2 or 1))
    mixed = causes @ random.standard_normal((n_in // 2 or 1, n_in)) + 0.3 * random.standard_normal((n_tokens, n_in))
    return (mixed * np.exp(random.standard_normal(n_in)) + 0.2).astype(np.float32)


def weight(n_out: int, n_in: int, seed: int = 1) -> Array:
    """W (n_out, n_in) float32."""
    random = np.random.default_rng(seed)
    return (0.05 * random.standard_t(5, (n_out, n_in))).astype(np.float32)


def gram(x: Array) -> Array:
    """H = X'X, the sum over tokens."""
    return x.T @ x


def squared_error(w: Array, effective: Array, x: Array) -> float:
    """||X (seen - W)'||^2 in float64, output by output."""
    return float(np.sum((x.astype(np.float64) @ (effective.astype(np.float64) - w.astype(np.float64)).T) ** 2))
