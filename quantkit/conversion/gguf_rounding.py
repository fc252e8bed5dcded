"""One matrix of a GGUF tensor rounded with error feedback to the types of its files, and written to its place.

A matrix is rounded on the device of torch that has its Gram matrix. Types without integer levels are rounded as in the
pass over the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.conversion.gguf_matrices import ROWS, Array, GgufMatrix, Move
from quantkit.conversion.gguf_pass import Target, quantize_chunk, write_at
from quantkit.errors import CalibrationError
from quantkit.forward.arrays import device, place, square
from quantkit.gguf.blocks import FORMATS
from quantkit.gguf.kernels import dequantize_rows
from quantkit.outputs.model import ModelTensor
from quantkit.quant.asymmetric import Correction, correction, gains, held_out_part
from quantkit.quant.cross import Cross
from quantkit.quant.feedback import Curvature, curvature, quantize_with_feedback, rows_at_once
from quantkit.quant.held_out import GGUF_RULE, HeldOut, choose_trust, step_sizes
from quantkit.stream.asymmetric_sums import AsymmetricSums
from quantkit.stream.statistics import Statistics
from quantkit.workers import SERIAL, Workers

# Rows that the sizes of rounding steps are taken from, by groups of so many columns.
_SAMPLED_ROWS, _GROUP = 128, 32


@dataclass(frozen=True)
class PreparedInput:
    """What matrices are rounded by. `correction`: see `quant.asymmetric`; None for the weights of the source."""

    curvature: Curvature
    correction: Correction | None = None


def prepare_input(
    matrix: GgufMatrix,
    sums: Statistics | AsymmetricSums,
    move: Move | None,
    n_rows: int,
    workers: Workers,
    *,
    residual: bool = True,
) -> PreparedInput | str:
    """H of the input, and the correction of the weights; or why H cannot be used.

    Of the correction, the part is made that is best for the held-out samples, by some rows of `matrix`.

    n_rows: those of all matrices that read the input. residual: use S, see `quant.cross`.
    """
    statistics = sums.statistics if isinstance(sums, AsymmetricSums) else sums
    crosses: list[Cross] = []
    if isinstance(sums, AsymmetricSums):
        assert sums.held_out is not None
        crosses = [cross if residual else replace(cross, residual=None) for cross in (sums.cross, sums.held_out)]
    gram, held_out = statistics.gram, statistics.held_out
    assert gram is not None and held_out is not None
    workers = workers if device(gram) is None else SERIAL
    if matrix.columns is not None:
        order = place(matrix.columns, device(gram))
        gram, held_out = square(gram, order), square(held_out, order)
        crosses = [cross.reordered(order) for cross in crosses]
    if move is not None:
        gram, held_out = move.moved.order.gram(gram), move.moved.order.gram(held_out)
        crosses = [move.moved.order.cross(cross) for cross in crosses]
    count, name = statistics.gram_tokens, f"the input of {matrix.tensor.name}"
    try:
        rows = matrix.middle_rows(_SAMPLED_ROWS)
        rows = rows if move is None else move.moved.order.columns(rows)
        steps = step_sizes(rows, _GROUP)
        held = HeldOut(held_out, statistics.held_out_tokens)
        trust = choose_trust(gram, count, held, steps, workers, rule=GGUF_RULE, keep=bool(crosses))
        limits: dict[str, Any] = {"damp": trust.damp, "shrink": trust.shrink, "name": name, "workers": workers}
        part = 1.0
        if crosses and trust.error is not None:
            others = trust.fitted or curvature(gram - held_out, count - held.count, **limits)
            part = held_out_part(
                place(rows, device(gram)), crosses[0], crosses[1], held_out, others, matrix.middle(_SAMPLED_ROWS)
            )
            del others
        del trust  # the next factorisation needs the memory of its factor
        by = curvature(gram, count, **limits)
    except CalibrationError as error:
        return str(error)
    return PreparedInput(by, correction(crosses[0], by, n_rows, workers, part=part) if crosses else None)


@dataclass(frozen=True)
class MatrixRounding:
    """Rounds the matrices of an input: `prepared` as of `prepare_input`, the `importance` of its channels (n_in,).

    Without an importance, types without integer levels are rounded as llama.cpp does without one.
    """

    prepared: PreparedInput | str
    importance: Array | None
    sweeps: int
    workers: Workers

    def write(self, matrix: GgufMatrix, targets: Sequence[Target], move: Move | None, written: Array | None) -> None:
        """Round and write a matrix. `written` (n_out, n_in) takes the values of the only target, if it is given."""
        tensor, prepared = matrix.tensor, self.prepared
        starts = range(0, matrix.n_rows, matrix.step(ROWS))
        corrected = self._corrected(matrix, targets, move)
        if isinstance(prepared, PreparedInput) and device(prepared.curvature.hessian) is not None:
            targets = self._write_on_device(matrix, prepared.curvature, targets, move, corrected, written)

        def one(start: int) -> None:
            rows, floats = matrix.rows(start, starts.step, move)
            quantized: dict[GGMLQuantizationType, NDArray[np.uint8]] = {}
            for target in targets:
                kind = target.slot.type
                if kind not in quantized:
                    if _feeds_back(kind, tensor) and isinstance(prepared, PreparedInput):
                        wanted = floats
                        if kind in corrected:
                            wanted = floats + corrected[kind].of(floats, rows=slice(start, start + len(floats)))
                        quantized[kind] = quantize_with_feedback(kind, wanted, prepared.curvature, sweeps=self.sweeps)
                    else:
                        quantized[kind] = quantize_chunk(kind, rows, floats, tensor, self.importance, target.label)
                write_at(target, quantized[kind], matrix.first_row + start)
                if written is not None:
                    written[start : start + len(rows)] = dequantize_rows(kind, quantized[kind], tensor.n_columns)

        if targets:
            self.workers.map(one, list(starts))

    def _corrected(
        self, matrix: GgufMatrix, targets: Sequence[Target], move: Move | None
    ) -> dict[GGMLQuantizationType, Correction]:
        """The correction for the types that lose less by it than they lose by leaving the weights' lattice."""
        if isinstance(self.prepared, str) or self.prepared.correction is None:
            return {}
        change = self.prepared.correction
        assert self.importance is not None
        rows, kinds = matrix.middle_rows(_SAMPLED_ROWS), {target.slot.type for target in targets}.intersection(FORMATS)
        if move is not None and move.moved.part == "down":
            rows = move.moved.order.columns(rows)
        return {
            kind: change for kind in kinds if gains(kind, rows, change, self.importance, matrix.middle(_SAMPLED_ROWS))
        }

    def _write_on_device(
        self,
        matrix: GgufMatrix,
        by: Curvature,
        targets: Sequence[Target],
        move: Move | None,
        corrected: Mapping[GGMLQuantizationType, Correction],
        written: Array | None,
    ) -> list[Target]:
        """Round and write on the device of torch that has `by`; the targets whose type has no levels are left."""
        n_columns = matrix.tensor.n_columns
        own = [target for target in targets if _feeds_back(target.slot.type, matrix.tensor)]
        read = matrix.step(ROWS)
        size = read * max(1, rows_at_once(n_columns) // read)
        for start in range(0, matrix.n_rows if own else 0, size):
            starts = range(start, min(start + size, matrix.n_rows), read)
            pieces = self.workers.map(lambda at: matrix.rows(at, read, move)[1], list(starts))
            weight = place(np.concatenate(pieces), device(by.hessian))
            del pieces
            for kind in dict.fromkeys(target.slot.type for target in own):
                wanted = weight
                if kind in corrected:
                    wanted = weight + corrected[kind].of(weight, rows=slice(start, start + len(weight)))
                rounded = quantize_with_feedback(kind, wanted, by, sweeps=self.sweeps, workers=self.workers)
                if written is not None:
                    written[start : start + len(rounded)] = dequantize_rows(kind, rounded, n_columns)
                for target in own:
                    if target.slot.type == kind:
                        write_at(target, rounded, matrix.first_row + start)
        return [target for target in targets if target not in own]


def _feeds_back(kind: GGMLQuantizationType, tensor: ModelTensor) -> bool:
    """Whether `tensor` is rounded to `kind` with error feedback."""
    return kind in FORMATS and kind != tensor.type
