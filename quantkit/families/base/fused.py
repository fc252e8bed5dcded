"""Cuts from fused tensors."""

import numpy as np

from quantkit.families.base.family import Take


def rows(start: int, count: int) -> Take:
    """`count` consecutive rows from row `start` (of a vector: elements)."""
    return Take(np.arange(start, start + count, dtype=np.int64))


def expert_halves(n_expert: int, n_rows: int, half: int) -> tuple[Take, ...]:
    """One half (0 or 1) of each expert's rows, for a tensor with two matrices of `n_rows` rows per expert.

    The source is (n_expert, 2 * n_rows, columns), gate before up: transformers' fused experts.
    """
    return tuple(rows((2 * expert + half) * n_rows, n_rows) for expert in range(n_expert))
