"""Mamba 2 in chunks against its recurrence, token by token in float64 (arXiv 2405.21060)."""

import numpy as np
import pytest

from quantkit.forward.mamba2 import recurrent


@pytest.mark.parametrize("n", [1, 63, 64, 65, 200])
def test_chunks_give_what_the_recurrence_gives_token_by_token(n: int) -> None:
    rng = np.random.default_rng(n)
    queries, keys = (rng.standard_normal((n, 2, 16)).astype(np.float32) for _ in range(2))
    values = rng.standard_normal((n, 6, 24)).astype(np.float32)
    steps = rng.random((n, 6)).astype(np.float32)
    # from a state that is kept for the whole text to one that is gone with the next token
    rate = -np.exp(np.linspace(-8, 5, 6)).astype(np.float32)
    expected = np.zeros((n, 6, 24))
    for head in range(6):
        state = np.zeros((16, 24))
        for token in range(n):
            step = np.float64(steps[token, head])
            state = np.exp(step * rate[head]) * state
            state = state + step * np.outer(keys[token, head // 3].astype(np.float64), values[token, head])
            expected[token, head] = queries[token, head // 3] @ state
    assert np.abs(recurrent(queries, keys, values, steps, rate) - expected).max() < 1e-4 * expected.std()
