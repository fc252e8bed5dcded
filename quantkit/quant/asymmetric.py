"""The target of a matrix whose inputs come from rounded layers: asymmetric calibration (GPTAQ, arXiv 2504.02692).

A matrix W of a rounded model receives x~ where the source's receives x. Its output is nearest to the source's W x, by
least squares over the tokens, with the weights

    W + W D H^-1,   D = sum (x - x~) x~',   H = sum x~ x~'

For the linear whose output completes a layer, S = sum r x~' is added to W D, with r the error of the hidden states that
the output is added to: it then makes up for a part of that error (see `quant.cross`).

Error feedback over H then rounds these. H has its shrinkage and damping, so that D counts as far as H is trusted.
Weights that were rounded to a lattice before leave it with this target; it is taken where the error falls all the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from gguf import GGMLQuantizationType

from quantkit.forward.arrays import contiguous, device, inner_product, namespace, place
from quantkit.gguf.blocks import FORMATS
from quantkit.gguf.kernels import dequantize_rows
from quantkit.quant.block_kernels import steps
from quantkit.quant.block_search import nearest_points
from quantkit.quant.cross import Cross
from quantkit.quant.factor import Factor, Triangle
from quantkit.quant.feedback import Curvature, quantize_with_feedback
from quantkit.quant.grid import Array
from quantkit.quant.held_out import block_inverses, propagated, propagated_back, taken_back
from quantkit.quant.lattice import lies_on_lattice
from quantkit.workers import SERIAL, Workers, parts

_ROWS = 256
# Squared error over squared weights that a type holds exactly: float16 scales, and weights that were rounded to
# bfloat16, leave 2e-6. Q8_0 has 2e-5 of weights that lie on no lattice.
_EXACT = 5e-6
_CHECKED_ROWS, _COMPARED_ROWS = 32, 64


@dataclass(frozen=True)
class Correction:
    """(W D + S) H^-1, which is added to the weights W of an input. Arrays are numpy's, or of torch on one device.

    With H = R R', R = T diag(p), two triangular solutions per row take the place of the inverse: for the rows of D,
    once for all W, or for those of W D, where the input has more columns than its matrices have rows.

    cross: D and S. inverses: of T's diagonal blocks. matrix: D H^-1, if it was computed.
    scale: by which the columns of W are multiplied and the inputs divided, (n_in,). part: of the change that is made.
    """

    cross: Cross
    by: Curvature
    inverses: Sequence[Array]
    matrix: Array | None = None
    scale: Array | None = None
    part: float = 1.0

    def of(self, weights: Array, workers: Workers = SERIAL, *, rows: slice = slice(None)) -> Array:
        """The change of `weights`, float32 (n_out, n_in), which are the `rows` of the linear."""
        if self.scale is not None:
            weights = weights / self.scale
        change: Array = self._solved(weights, workers, rows) if self.matrix is None else weights @ self.matrix
        if self.scale is not None:
            change *= self.scale
        if self.part != 1:
            change *= self.part
        return change

    def _solved(self, weights: Array | None, workers: Workers, rows: slice = slice(None)) -> Array:
        """(W D + S) H^-1, or D H^-1 without weights."""
        whole = self.cross.whole() if weights is None else weights

        def some(at: slice) -> Array:
            crossed = whole[at] if weights is None else self.cross.of(whole[at], rows_within(rows, at))
            return _times_inverse(crossed, self.by, self.inverses)

        solved: Array = namespace(whole).concatenate(workers.map(some, list(parts(len(whole), _ROWS))))
        return solved


def _times_inverse(matrix: Array, by: Curvature | Triangle, inverses: Sequence[Array]) -> Array:
    """`matrix` (n, n_in) times H^-1."""
    halfway = propagated_back(contiguous(matrix[:, by.order]), by.feedback, inverses)
    halfway /= by.importance[by.order]
    return taken_back(propagated(halfway, by.feedback, inverses), by.order)


def correction(
    cross: Cross, curvature: Curvature, n_rows: int, workers: Workers = SERIAL, *, part: float = 1.0
) -> Correction:
    """The correction of matrices that have `n_rows` rows together.

    cross: D and S over the tokens of `curvature`. part: see `held_out_part`.
    """
    by = Correction(cross, curvature, block_inverses(curvature.feedback), part=part)
    if n_rows < cross.n_in or cross.residual is not None:
        return by
    return replace(by, matrix=by._solved(None, workers))


def rows_within(rows: slice, some: slice) -> slice:
    """`some` of the rows `rows` of a matrix, both without negative indices."""
    start, step = rows.start or 0, rows.step or 1
    stop = None if some.stop is None else start + some.stop * step
    if rows.stop is not None:
        stop = rows.stop if stop is None else min(stop, rows.stop)
    return slice(start + (some.start or 0) * step, stop, step * (some.step or 1))


def held_out_part(
    weights: Array,
    cross: Cross,
    held_cross: Cross,
    held_gram: Array,
    by: Curvature | Triangle,
    rows: slice = slice(None),
) -> float:
    """The part of the change of weights, float32 (n, n_in), that is best for held-out samples: 0 to 1.

    With few tokens most of a change is chance, which adds to the error on all other texts. By least squares over the
    held-out samples, for the change that the other samples give.

    cross, held_cross: D and S of all samples, and of those held out. held_gram: H of these. by: of the H of the others.
    rows: those of the linear that `weights` are.
    """
    held_products = held_cross.of(weights, rows)
    change = _times_inverse(cross.of(weights, rows) - held_products, by, block_inverses(by.feedback))
    energy = inner_product(change @ held_gram, change)
    return min(1.0, max(0.0, inner_product(held_products, change) / energy)) if energy > 0 else 0.0


def factored_correction(cross: Cross, factored: Factor, n_rows: int, workers: Workers = SERIAL) -> Correction:
    """The `correction` of the factor that AWQ and GPTQ round by."""
    importance = factored.pivots * factored.pivots
    by = Curvature(factored.gram, factored.order, factored.feedback, importance, factored.damp)
    return correction(cross, by, n_rows, workers)


@dataclass(frozen=True)
class Aim:
    """What the matrices of an input are rounded to. `gram`, `cross`: H and D; `correction`: see above.

    Without `cross` and `correction` they are rounded as they are.
    """

    gram: Array
    cross: Cross | None = None
    correction: Correction | None = None

    def scaled(self, scale: Array) -> "Aim":
        """The same for matrices whose columns are multiplied by `scale` (n_in,), and inputs that are divided by it."""
        squares, cross, correction = scale[:, None] * scale, self.cross, self.correction
        if cross is None or correction is None:
            return Aim(self.gram / squares)
        return Aim(self.gram / squares, cross.divided(scale), replace(correction, scale=scale))

    def targets(
        self,
        weights: Sequence[Array],
        rounded: Callable[[Sequence[Array]], Sequence[Array]],
        workers: Workers = SERIAL,
    ) -> Sequence[Array]:
        """For each of `weights` (n_out, n_in), the matrix to round instead: corrected, or itself.

        It stays itself where its rounding is exact or has the smaller error, by evenly spread rows. `rounded`: the
        values that matrices are rounded to.
        """
        if self.cross is None or self.correction is None:
            return weights
        corrected = [weight + self.correction.of(weight, workers) for weight in weights]
        rows = [slice(None, None, -(-len(weight) // _COMPARED_ROWS)) for weight in weights]
        samples, others = ([matrix[at] for matrix, at in zip(some, rows, strict=True)] for some in (weights, corrected))
        compared = zip(samples, rounded(others), rounded(samples), strict=True)
        better = [self._is_better(*values) for values in compared]
        return [one if chosen else weight for one, weight, chosen in zip(corrected, weights, better, strict=True)]

    def _is_better(self, weights: Array, corrected: Array, plain: Array) -> bool:
        """Whether the rounded other weights, `corrected`, are nearer in output than the rounded ones, `plain`."""
        error: Array = plain - weights
        if inner_product(error, error) <= _EXACT * inner_product(weights, weights):
            return False
        return self.error(weights, corrected) < self.error(weights, plain)

    def error(self, weights: Array, values: Array) -> float:
        """||W x - V x~||^2 over the tokens, less the part that no V changes: tr(E H E') - 2 tr(W D E'), E = V - W.

        weights, values: W and V, float32 (n, n_in).
        """
        assert self.cross is not None
        error: Array = values - weights
        return inner_product(error @ self.gram, error) - 2 * inner_product(self.cross.of(weights), error)


def holds_exactly(kind: GGMLQuantizationType, rows: Array, importance: Array) -> bool:
    """Whether a type holds the weights (n, n_in) as they are, because they were rounded to its lattice before.

    Such weights keep their values: the least-squares target lies on no lattice. `importance`: (n_in,).
    """
    format_, w = FORMATS[kind], np.ascontiguousarray(rows[:: -(-len(rows) // _CHECKED_ROWS)].T)
    scales = steps().search_scales(w, importance, format_)
    step, base = scales.step(format_), scales.base(format_)
    step = np.repeat(step, format_.group, axis=0)
    base = np.zeros_like(step) if base is None else np.repeat(base, format_.group, axis=0)
    inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step != 0)
    error = nearest_points((w - base) * inverse, format_) * step + base - w
    return float(np.vdot(error, error)) <= _EXACT * float(np.vdot(w, w))


def gains(
    kind: GGMLQuantizationType, rows: Array, change: Correction, importance: Array, at: slice = slice(None)
) -> bool:
    """Whether weights (n, n_in) in a type are nearer to the target, them and their change, if it is rounded, not they.

    Tried on some of the rows if they lie on a lattice, see `quant.lattice`. at: the rows of the linear that they are.
    """
    if holds_exactly(kind, rows, importance):
        return False
    if not lies_on_lattice(rows):
        return True
    by = change.by
    some = slice(None, None, -(-len(rows) // _CHECKED_ROWS))
    w = place(np.ascontiguousarray(rows[some]), device(by.hessian))
    target = w + change.of(w, rows=rows_within(at, some))
    errors = []
    for wanted in (w, target):
        made = place(dequantize_rows(kind, quantize_with_feedback(kind, wanted, by), rows.shape[1]), device(by.hessian))
        error: Array = made - target
        errors.append(inner_product(error @ by.hessian, error))
    return errors[1] < errors[0]
