"""Linear recurrences in chunks of tokens, with a state between chunks: Gated DeltaNet and Mamba 2."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from quantkit.forward.arrays import Array, device, empty, namespace, place

CHUNK = 64
"""Tokens of a chunk: products within it are (CHUNK, CHUNK) matrices, which stay in the CPU's cache."""


def softplus(x: Array) -> Array:
    """ln(1 + exp(x)), without overflow."""
    xp = namespace(x)
    out: Array = xp.clip(x, 0.0, None) + xp.log1p(xp.exp(-abs(x)))
    return out


def by_head(x: Array, shared_by: int) -> Array:
    """(n, groups, width) as (heads, n, width); `shared_by` consecutive heads have the values of one group."""
    n, heads, width = x.shape
    shape = (heads, shared_by, n, width)
    repeated: Array = namespace(x).broadcast_to(x.swapaxes(0, 1)[:, None], shape).reshape(heads * shared_by, n, width)
    return repeated


def later(n: int, where: Any) -> Array:
    """(n, n): -inf where column j is after row i, else 0."""
    mask: Array = place(np.triu(np.full((n, n), -np.inf, np.float32), 1), where)
    return mask


def strictly_lower(n: int, where: Any) -> Array:
    """(n, n): 1 where column j is before row i, else 0."""
    lower: Array = place(np.tri(n, n, -1, dtype=np.float32), where)
    return lower


def identity(n: int, where: Any) -> Array:
    """The identity, (n, n)."""
    ones: Array = place(np.eye(n, dtype=np.float32), where)
    return ones


class Decays(NamedTuple):
    """Products of the decays of a chunk of n tokens.

    between: (heads, n, n), from token j to token i; 0 for j after i.
    since: (heads, n, 1), from the start of the chunk to a token.
    remaining: (heads, n, 1), from a token to the end of the chunk.
    """

    between: Array
    since: Array
    remaining: Array


def recurrence(
    queries: Array, keys: Array, values: Array, log_decay: Array, write: Callable[[slice, Array, Decays, Array], Array]
) -> Array:
    """The outputs o_t = S_t' q_t of the states S_t = exp(g_t) S_{t-1} + k_t w_t', (n, heads, value width).

    Args:
        queries, keys: (n, groups, key width). Consecutive heads share a group.
        values: (n, heads, value width); only the shape counts.
        log_decay: g, (n, heads).
        write: gives w, (heads, n, value width), of a chunk. Its arguments: the tokens as a slice, their keys (heads, n,
            key width), the decays, the state before the chunk (heads, key width, value width).
    """
    n, heads, width = values.shape
    shared_by = heads // keys.shape[1]
    xp, where = namespace(values), device(values)
    state = empty((heads, keys.shape[-1], width), values)
    state[...] = 0.0
    out = empty((n, heads, width), values)
    for start in range(0, n, CHUNK):
        rows = slice(start, min(start + CHUNK, n))
        q, k = (by_head(part[rows], shared_by) for part in (queries, keys))
        total = xp.cumsum(log_decay[rows].swapaxes(0, 1), axis=1)
        # the mask comes before exp, which could overflow for a later j
        between = xp.exp(total[:, :, None] - total[:, None, :] + later(q.shape[1], where))
        since = xp.exp(total)[..., None]
        decays = Decays(between, since, xp.exp(total[:, -1:] - total)[..., None])
        written = write(rows, k, decays, state)
        out[rows] = ((q * since) @ state + (q @ k.swapaxes(1, 2) * between) @ written).swapaxes(0, 1)
        state = state * since[:, -1:] + (k * decays.remaining).swapaxes(1, 2) @ written
    return out
