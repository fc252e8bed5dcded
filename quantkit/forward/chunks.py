"""What recurrences over chunks of tokens share: masks, heads in groups, and the softplus of their time steps."""

from typing import Any

import numpy as np

from quantkit.forward.arrays import Array, namespace, place

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
