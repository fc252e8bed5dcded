"""Quantized matrices for tests of what holds them."""

import numpy as np

from quantkit.quant.grid import Grid, Quantized


def random_quantized(grid: Grid, n_out: int, n_in: int, *, least_zero: int = 0, seed: int = 0) -> Quantized:
    """Every integer of the grid may stand everywhere."""
    rng = np.random.default_rng(seed)
    size = grid.group_size(n_in)
    scales = rng.uniform(0.01, 0.1, (n_out, n_in // size)).astype(np.float16).astype(np.float32)
    return Quantized(
        grid,
        rng.integers(0, grid.top + 1, (n_out, n_in), np.uint8),
        scales,
        rng.integers(least_zero, grid.top + 1, scales.shape, np.uint8),
        grid.groups(n_in),
    )
