"""What the error of an input has to do with the input: D = sum (x - x~) x~'. The rounded model gives x~ in place of x.

The output W x of a linear is added to hidden states. Where their error r is known, S = sum r x~' joins W D, so that the
linear makes up for a part of it too.

Only W D is read, for the weights W of the input. Where W has few rows, the sum needs few too: with W = L Q, rows of Q
orthonormal, W D = W Q' (Q D). Then Q D is summed. It takes 4 n_rows n_in operations for a token, and D takes 2 n_in^2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantkit.forward.arrays import Array, copied, fetch, mean, namespace, set_diagonal, square
from quantkit.quant.factor import cholesky
from quantkit.workers import SERIAL, Workers

_FEWER = 3  # rows of Q D against those of D that pay for Q, and for the second product of each token
_JITTER = 1e-6  # of the mean diagonal of W W', for rows of W that depend on others


@dataclass(frozen=True)
class Cross:
    """D, or D on the rows of the weights that read the input.

    sums: D, float32 (n_in, n_in), or Q D (n, n_in). basis: Q (n, n_in); None for D itself. residual: S (n_out, n_in).
    """

    sums: Array
    basis: Array | None = None
    residual: Array | None = None

    @property
    def n_in(self) -> int:
        """The number of channels of the input."""
        return int(self.sums.shape[1])

    def of(self, weights: Array, rows: slice = slice(None)) -> Array:
        """W D + S, float32 (n, n_in). `weights`: the `rows` of W (n, n_in); with a basis, rows that it spans."""
        within: Array = weights if self.basis is None else weights @ self.basis.T
        products: Array = within @ self.sums
        if self.residual is not None:
            products += self.residual[rows]
        return products

    def whole(self) -> Array:
        """D, float32 (n_in, n_in); with a basis, D on what it spans."""
        if self.basis is None:
            return self.sums
        whole: Array = self.basis.T @ self.sums
        return whole

    def reordered(self, order: NDArray[np.intp]) -> "Cross":
        """The same for an input whose channels stand in another order, (n_in,)."""
        residual = None if self.residual is None else self.residual[:, order]
        if self.basis is None:
            return Cross(square(self.sums, order), residual=residual)
        return Cross(self.sums[:, order], self.basis[:, order], residual)

    def divided(self, scale: Array) -> "Cross":
        """The same for an input that is divided by `scale`, float32 (n_in,), and weights that are multiplied by it."""
        residual = None if self.residual is None else self.residual / scale
        if self.basis is None:
            return Cross(self.sums / scale / scale[:, None], residual=residual)
        return Cross(self.sums / scale, self.basis / scale, residual)

    def fetched(self) -> "Cross":
        """The same with arrays of numpy."""
        basis, residual = (None if values is None else fetch(values) for values in (self.basis, self.residual))
        return Cross(fetch(self.sums), basis, residual)


def takes_basis(n_rows: int, n_in: int) -> bool:
    """Whether Q D is summed for weights of `n_rows` rows together that read an input of `n_in` channels."""
    return _FEWER * n_rows <= n_in


def basis_of(weights: Sequence[Array], workers: Workers = SERIAL) -> Array | None:
    """Q of the weights (n, n_in) that read an input together, see `Cross`; None where D itself takes less time."""
    n_rows, n_in = sum(map(len, weights)), weights[0].shape[1]
    if not takes_basis(n_rows, n_in):
        return None
    xp = namespace(weights[0])
    together = weights[0] if len(weights) == 1 else xp.concatenate(list(weights))
    products = together @ together.T
    set_diagonal(products, copied(products.diagonal()) + _JITTER * mean(products.diagonal()))
    try:
        basis: Array = xp.linalg.inv(cholesky(products, workers)) @ together
    except np.linalg.LinAlgError:  # all weights are zero
        return None
    return basis
