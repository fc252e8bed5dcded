"""Statistics of a linear's input: sums over tokens. The tokens are not kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantkit.forward.arrays import Array, fetch, namespace
from quantkit.workers import SERIAL, Workers, parts

WIDE_BLOCK = 1024
"""Columns of a wide Gram matrix that are summed together; up to twice that, all are."""


@dataclass
class Statistics:
    """Sums over the tokens of one distinct input x of `width` values.

    `squares`: the sum of x^2, float64 (width,), for the importance matrix. `tokens`: the number of tokens in `squares`.
    `gram`: H, the sum of x x', float32 (width, width), where a format needs it. `gram_tokens`: the number of tokens in
    `gram`; it exceeds `tokens` for an expert that received too few tokens and is calibrated on extra ones.
    """

    squares: NDArray[np.float64]
    tokens: int = 0
    gram: Array | None = None
    gram_tokens: int = 0

    @classmethod
    def of(cls, width: int, *, gram: bool) -> "Statistics":
        """Empty statistics of an input of this width; with `gram`, of its Gram matrix too."""
        return cls(np.zeros(width), 0, np.zeros((width, width), np.float32) if gram else None)

    @property
    def is_wide(self) -> bool:
        """Whether the Gram matrix is summed in blocks of columns."""
        return self.gram is not None and len(self.gram) > 2 * WIDE_BLOCK

    def add(self, pieces: Sequence[Array], extra: Sequence[Array] = (), workers: Workers = SERIAL) -> None:
        """Count the tokens of `pieces`, each (n, width); those of `extra` go into the Gram matrix only.

        The sums do not depend on the number of workers.
        """
        for piece in pieces:
            self.squares += fetch(namespace(piece).einsum("ij,ij->j", piece, piece))
            self.tokens += len(piece)
        if self.gram is not None:
            together = [piece for piece in (*pieces, *extra) if len(piece)]
            if together:
                x = together[0] if len(together) == 1 else namespace(together[0]).concatenate(together)
                self._add_gram(x, workers)
                self.gram_tokens += len(x)

    def _add_gram(self, x: Array, workers: Workers) -> None:
        assert self.gram is not None
        gram, width = self.gram, x.shape[1]
        if width <= 2 * WIDE_BLOCK or not isinstance(x, np.ndarray):
            # one array and its own transpose: BLAS computes half of it (syrk)
            gram += fetch(x.T @ x)
            return

        def add_columns(columns: slice) -> None:
            own, before = x[:, columns], slice(0, columns.start)
            gram[columns, columns] += own.T @ own
            product = x[:, before].T @ own
            gram[before, columns] += product
            gram[columns, before] += product.T

        workers.map(add_columns, list(parts(width, WIDE_BLOCK)))
