"""Gated DeltaNet in chunks against its recurrence, token by token in float64 (arXiv 2412.06464)."""

import numpy as np
import pytest

from quantkit.forward.delta_net import _recurrent as in_chunks


def token_by_token(q: np.ndarray, k: np.ndarray, v: np.ndarray, log_decay: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """S_t = exp(g_t) S_{t-1} (I - beta_t k_t k_t') + beta_t v_t k_t', o_t = S_t q_t, for each value head alone."""
    n, heads, width = v.shape
    shared_by = heads // k.shape[1]
    out = np.zeros((n, heads, width))
    for head in range(heads):
        state = np.zeros((width, k.shape[-1]))
        for token in range(n):
            key, query = (part[token, head // shared_by].astype(np.float64) for part in (k, q))
            state = np.exp(np.float64(log_decay[token, head])) * state
            state = state + beta[token, head] * np.outer(v[token, head] - state @ key, key)
            out[token, head] = state @ query
    return out


@pytest.mark.parametrize("n", [1, 63, 64, 65, 200])
def test_chunks_give_what_the_recurrence_gives_token_by_token(n: int) -> None:
    rng = np.random.default_rng(n)
    q, k = (rng.standard_normal((n, 2, 16)).astype(np.float32) for _ in range(2))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v = rng.standard_normal((n, 6, 24)).astype(np.float32)
    # from a state that is kept for the whole text to one that is gone with the next token
    log_decay = -np.exp(rng.uniform(-8, 3, (n, 6))).astype(np.float32)
    beta = rng.random((n, 6)).astype(np.float32)
    expected = token_by_token(q, k, v, log_decay, beta)
    assert np.abs(in_chunks(q, k, v, log_decay, beta) - expected).max() < 1e-4 * expected.std()


def test_a_decay_beyond_floats_forgets_everything_and_stays_finite() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((80, 1, 8)).astype(np.float32) for _ in range(3))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    log_decay, beta = np.full((80, 1), -200.0, np.float32), np.ones((80, 1), np.float32)
    out = in_chunks(q, k, v, log_decay, beta)
    alone = np.einsum("nhk,nhk->nh", q, k)[..., None] * v
    assert np.abs(out - alone).max() < 1e-5 * alone.std()
