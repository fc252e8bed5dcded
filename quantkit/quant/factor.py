"""The damped Gram matrix of an input and its triangular factor, which error feedback rounds by."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CalibrationError
from quantkit.forward.arrays import (
    ascending,
    copied,
    device,
    empty,
    fetch,
    mean,
    namespace,
    place,
    set_diagonal,
    square,
)
from quantkit.quant.grid import Array
from quantkit.workers import SERIAL, Workers, parts

LEAST_DAMP = 0.05
"""The damping of an input that was seen for many tokens, as a fraction of the mean diagonal."""
SHRINK = 0.3
"""Part of each diagonal entry that is added to it: correlations of another text differ, so they count for less."""
ROUNDING_VERSION = 10
"""Goes up when the bytes of AWQ, GPTQ or w4a4 change: a run of an earlier version is then not resumed."""

_MOST_DAMP = 1.0
# Columns of a panel of the blocked factorisation, rows and columns of a tile, and the least rows it pays for.
_PANEL, _TILE, _LEAST_BLOCKED = 64, 512, 768


@dataclass(frozen=True)
class Factor:
    """The factor of a damped Gram matrix in the order in which columns are rounded.

    With H = R R' in that order, R upper triangular, the error tr(dW H dW') of a row with the errors e is

        sum_k R_kk^2 (e_k + sum_{j<k} e_j R_jk / R_kk)^2

    so column k rounds w_k + sum_{j<k} e_j R_jk / R_kk: GPTQ in the LDL form, which needs no inverse (Chee et al. 2023,
    arXiv 2307.13304, show that it equals the paper's).

    gram: float32 (n_in, n_in), H with its shrinkage and damping, columns as stored.
    order: the columns in the order of rounding, (n_in,).
    pivots: float32 (n_in,), R_kk of each column, columns as stored. R_kk^2 is the weight of a column's rounding error.
    feedback: float32 (n_in, n_in), R_jk / R_kk for j < k, otherwise 0, in the order of rounding.
    damp: the fraction of the mean diagonal that was added to the diagonal. `raised`: it is more than was asked for.
    """

    gram: Array
    order: NDArray[np.intp]
    pivots: Array
    feedback: Array
    damp: float
    raised: bool = False

    def scaled(self, scale: Array) -> "Factor":
        """The factor of the input divided by `scale`, float32 (n_in,): its Gram matrix is H / (s s')."""
        scale = place(scale, device(self.gram))
        ordered = scale[self.order]
        feedback = self.feedback * ordered
        feedback /= ordered[:, None]
        gram = self.gram / scale
        gram /= scale[:, None]
        return Factor(gram, self.order, self.pivots / scale, feedback, self.damp, self.raised)

    def fetched(self) -> "Factor":
        """The factor with arrays of numpy."""
        gram, order, pivots, feedback = map(fetch, (self.gram, self.order, self.pivots, self.feedback))
        return Factor(gram, order, pivots, feedback, self.damp, self.raised)


@dataclass(frozen=True)
class Triangle:
    """A factor of H alone: with H = R R', R = T diag(p).

    order: the columns in the order of rounding. feedback: T above its diagonal, float32 (n_in, n_in), in that order.
    importance: p^2, float32 (n_in,), columns as stored.
    """

    order: NDArray[np.intp]
    feedback: Array
    importance: Array


@dataclass(frozen=True)
class Damping:
    """What is added to the diagonal of a Gram matrix before it is factored.

    fraction: of its mean; None: see `usual_damp`. If the factorisation fails, it is increased tenfold, up to 1.
    shrink: of each entry itself, which comes first.
    """

    fraction: float | None = None
    shrink: float = SHRINK


USUAL = Damping()


def factor(
    gram: Array,
    count: int,
    damping: Damping = USUAL,
    *,
    act_order: bool = True,
    name: str = "the input",
    workers: Workers = SERIAL,
) -> Factor:
    """Factor the Gram matrix of an input: float32 (n_in, n_in), H, the sum of x x' over `count` tokens.

    act_order: columns are rounded in the order of decreasing diagonal of H.
    name: the name of the input in messages.

    The factor is float32, as `gram` is. On a real model the errors equal those in float64 to four figures.

    Raises CalibrationError: no token, statistics that are not finite, or no factorisation at any damping.
    """
    n_in = len(gram)
    fraction = damping.fraction
    if fraction is None:
        fraction = usual_damp(n_in, count) if count > 0 else 0.0
    damped = shrunk(gram, damping.shrink)
    order, triangle, used = factor_gram(damped, count, damp=fraction, act_order=act_order, name=name, workers=workers)
    set_diagonal(damped, _damped(damped.diagonal(), used))
    ordered = copied(triangle.diagonal())
    pivots = empty((n_in,), gram)
    pivots[order] = ordered
    triangle /= ordered
    return Factor(damped, order, pivots, namespace(triangle).triu(triangle, 1), used, used > fraction)


def shrunk(gram: Array, shrink: float) -> Array:
    """A copy of a Gram matrix whose diagonal entries are larger by the fraction `shrink`."""
    copy: Array = copied(gram)
    set_diagonal(copy, gram.diagonal() * (1 + shrink))
    return copy


def factor_gram(
    gram: Array, count: int, *, damp: float, act_order: bool, name: str, workers: Workers
) -> tuple[NDArray[np.intp], Array, float]:
    """The order of the columns, the factor R of the damped H in that order, and the damping; see `factor`.

    Raises:
        CalibrationError: no token, statistics that are not finite, or no factorisation at any damping.
    """
    if count < 1:
        raise CalibrationError(f"no token of the calibration text reached {name}; calibrate on a longer text")
    xp = namespace(gram)
    if not xp.isfinite(gram).all():
        raise CalibrationError(f"the activations of the calibration text are not finite in {name}; check the model")
    if not mean(gram.diagonal()) > 0:
        raise CalibrationError(f"{name} is zero for the whole calibration text; calibrate on another text")
    diagonal: Array = copied(gram.diagonal())
    order = ascending(-diagonal) if act_order else place(np.arange(len(gram)), device(gram))
    backwards = xp.flip(order, (0,))
    flipped = _flipped(gram, backwards, act_order=act_order)
    # numpy's is factored in place, so another attempt needs `gram`; a device has less room for it
    kept = gram if xp is np else None
    del gram
    while True:
        set_diagonal(flipped, _damped(diagonal, damp)[backwards])
        try:
            lower = _cholesky_in_place(flipped, workers)
            del flipped  # torch's flip copies
            return order, xp.flip(lower, (0, 1)), damp
        except np.linalg.LinAlgError:
            if damp >= _MOST_DAMP:
                raise CalibrationError(
                    f"the calibration statistics of {name} cannot be factored, even with a damping of {damp:g}; "
                    "calibrate on a longer text"
                ) from None
            damp = min(_MOST_DAMP, max(0.001, 10 * damp))
            if kept is not None:
                flipped = _flipped(kept, backwards, act_order=act_order)


def _flipped(gram: Array, backwards: NDArray[np.intp], *, act_order: bool) -> Array:
    """A copy of a Gram matrix in the order `backwards`; without act_order, that is n-1 to 0."""
    if act_order:
        return square(gram, backwards)
    flipped: Array = copied(namespace(gram).flip(gram, (0, 1)))
    return flipped


def _damped(diagonal: Array, damp: float) -> Array:
    """The damped diagonal of a Gram matrix."""
    diagonal = copied(diagonal)
    middle = mean(diagonal)
    diagonal[diagonal <= 0] = middle  # an input that is always 0 does not affect other columns
    damped: Array = diagonal + damp * middle
    return damped


def usual_damp(n_in: int, count: int) -> float:
    """The damping of an input of `n_in` values that was seen for `count` tokens: n_in / (2 count), from 0.05 to 1.

    The fewer tokens, the more of the sample's correlations are chance. On real models, the error on other samples of
    the same text is smallest near n_in / (2 count); on texts of another kind, more damping is better, hence the 0.05.
    """
    return min(_MOST_DAMP, max(LEAST_DAMP, 0.5 * n_in / count))


def cholesky(matrix: Array, workers: Workers = SERIAL) -> Array:
    """L, lower triangular, with L L' = matrix (n, n), a symmetric positive definite matrix.

    In panels of 64 columns: factor the corner, solve the rows below it. The rest is updated for eight of them at once.
    LAPACK's own factorisation takes three times as long at 1536 and at 8960 rows. Raises numpy.linalg.LinAlgError when
    the matrix is not positive definite.
    """
    return _cholesky_in_place(copied(matrix), workers)


def _cholesky_in_place(work: Array, workers: Workers) -> Array:
    """As `cholesky`, in the memory of `work` where that is possible.

    New memory for the products of each tile would cost a fifth of the time at 8960 rows.
    """
    n = len(work)
    if namespace(work) is not np:
        return _cholesky_by_torch(work)
    if n <= _LEAST_BLOCKED:
        return np.asarray(np.linalg.cholesky(work), work.dtype)
    for first in range(0, n, _TILE):
        end = min(first + _TILE, n)
        for start in range(first, end, _PANEL):
            panel = slice(start, min(start + _PANEL, end))
            if start > first:
                work[start:, panel] -= work[start:, first:start] @ work[panel, first:start].T
            corner = np.linalg.cholesky(work[panel, panel])
            work[panel, panel] = corner
            work[panel.stop :, panel] = work[panel.stop :, panel] @ np.linalg.inv(corner).T

        def update(columns: slice, finished: slice = slice(first, end)) -> None:
            _update(work, slice(finished.stop + columns.start, finished.stop + columns.stop), finished)

        workers.map(update, list(parts(n - end, _TILE)))
    for start in range(0, n, _PANEL):
        panel = slice(start, start + _PANEL)
        work[panel, panel] = np.tril(work[panel, panel])
        work[panel, panel.stop :] = 0
    return work


def _update(work: Array, columns: slice, finished: slice) -> None:
    """Subtract the products of `finished` columns from `columns` of the rest, on and below the diagonal."""
    space = np.empty((_TILE, columns.stop - columns.start), work.dtype)
    factors = work[columns, finished].T
    for start in range(columns.start, len(work), _TILE):
        rest = work[start : start + _TILE, columns]
        rest -= np.matmul(work[start : start + _TILE, finished], factors, out=space[: len(rest)])


def _cholesky_by_torch(matrix: Array) -> Array:
    triangle, failed = namespace(matrix).linalg.cholesky_ex(matrix)
    if int(failed):
        raise np.linalg.LinAlgError("the matrix is not positive definite")
    lower: Array = triangle
    return lower
