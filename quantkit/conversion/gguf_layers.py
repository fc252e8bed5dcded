"""GGUF tensors of one layer at a time, rounded with error feedback while the calibration holds their Gram matrix.

The bytes go to their place in the partial files. The pass over the model then leaves these tensors out. Where the Gram
matrices are on a device of torch, the matrices are rounded there.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from types import MappingProxyType
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.conversion.gguf_pass import Target, check_finite, open_targets, quantize_chunk, write_at
from quantkit.conversion.neurons import neurons_of
from quantkit.errors import CalibrationError
from quantkit.forward.arrays import device, place, square
from quantkit.forward.linears import LayerLinears
from quantkit.gguf.blocks import FORMATS
from quantkit.gguf.kernels import dequantize_rows
from quantkit.imatrix.names import LinearKey
from quantkit.outputs.gguf_files import GgufOutput, GgufPlan
from quantkit.outputs.model import FLOAT_TYPES, ModelTensor, widen
from quantkit.quant.asymmetric import correction, holds_exactly
from quantkit.quant.feedback import Curvature, curvature, quantize_with_feedback, rows_at_once
from quantkit.quant.fold import matrix as linear_matrix
from quantkit.quant.held_out import GGUF_RULE, HeldOut, choose_trust, step_sizes
from quantkit.quant.neurons import REORDERED, Moved, matrix_key, neuron_order
from quantkit.stream.rounded import AsymmetricSums
from quantkit.stream.statistics import Statistics
from quantkit.workers import SERIAL, Workers

Array = NDArray[np.float32]
# Rows that one thread rounds at once. The bytes depend on it in the last bit of a sum, so it is not an option.
_ROWS = 256
# Rows that the sizes of rounding steps are taken from, by groups of so many columns.
_SAMPLED_ROWS, _GROUP = 128, 32
_DTYPES: dict[GGMLQuantizationType, Any] = {kind: dtype for dtype, kind in FLOAT_TYPES.items()}
_UNQUANTIZED = (*FLOAT_TYPES.values(), GGMLQuantizationType.I32)


@dataclass(frozen=True)
class _Matrix:
    """Matrix `number` of a GGUF tensor, of `rows` rows, or that many rows of a matrix.

    `columns`: the input channels that its columns multiply, None if in order.
    """

    tensor: ModelTensor
    number: int
    rows: int
    columns: NDArray[np.int64] | None

    @property
    def shape(self) -> tuple[int, int]:
        """(n_out, n_in)."""
        return self.rows, self.tensor.n_columns


@dataclass(frozen=True)
class Move:
    """The new order of a matrix, and the matrix in the source's order (n_out, n_in)."""

    moved: Moved
    weight: Array


@dataclass(frozen=True)
class RoundedInput:
    """An input as the rounded layers of the file `label` give it, and the weights of its linears.

    `source`, `rounded`: by linear, its weights (n_out, n_in); `rounded` takes the values that are written.
    """

    label: str
    sums: AsymmetricSums
    source: Mapping[LinearKey, Array]
    rounded: Mapping[LinearKey, Array]


@dataclass(frozen=True)
class _Prepared:
    """What a matrix is rounded by. `correction`: see `quant.asymmetric`; None for the source's own weights."""

    curvature: Curvature
    correction: Array | None = None


class FeedbackRounder:
    """Rounds the GGUF tensors of each layer that reads a calibrated input, in every type, and writes them.

    Types without integer levels are rounded as in the pass, with the same importances. `covered`: the tensors that are
    rounded here, of all layers. `rounded`: the tensors of the current layer, each with the reasons why some of its
    matrices were rounded without feedback. `moved`: its matrices whose neurons have another order.
    """

    on_device = True

    def __init__(
        self,
        plan: GgufPlan,
        sources: Mapping[str, Sequence[LinearKey]],
        columns: Mapping[str, NDArray[np.int64]],
        workers: Workers,
        *,
        keep: bool,
    ) -> None:
        """`sources`: GGUF tensor -> linears of its matrices; `columns`: `CalibrationPlan.imatrix_columns`."""
        self.plan, self.workers = plan, workers
        self.rounded: dict[str, list[str]] = {}
        self.moved: dict[str, Moved] = {}
        self._stack = ExitStack()
        self._targets = open_targets(plan, self._stack, keep=keep)
        tensors = {tensor.name: tensor for tensor in plan.model.tensors}
        self._matrices: dict[LinearKey, list[_Matrix]] = {}
        for name, keys in sources.items():
            if name in tensors and self._has_levels(name):
                for number, key in enumerate(keys):
                    matrix = _Matrix(tensors[name], number, tensors[name].n_rows // len(keys), columns.get(name))
                    self._matrices.setdefault(key, []).append(matrix)

    def _has_levels(self, name: str) -> bool:
        return any(target.slot.type in FORMATS for target in self._targets[name])

    @property
    def covered(self) -> set[str]:
        """Names of the GGUF tensors that are rounded with error feedback."""
        return {matrix.tensor.name for matrices in self._matrices.values() for matrix in matrices}

    def __enter__(self) -> "FeedbackRounder":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def targets(self, name: str) -> list[Target]:
        """The places of a tensor in the files."""
        return self._targets[name]

    def reads(self, key: LinearKey, label: str) -> bool:
        """Whether a matrix of the linear is rounded here for the file `label`."""
        matrices = self._matrices.get(key, [])
        return any(target.label == label for matrix in matrices for target in self._targets[matrix.tensor.name])

    def begin(self) -> None:
        """Start a new layer."""
        self.rounded.clear()
        self.moved.clear()

    def quantize(
        self, layer: LayerLinears, expert: int | None, tensors: Mapping[str, Array], sums: Mapping[str, Statistics]
    ) -> None:
        """Round and write the matrices of one routed expert, or with None all others of the layer."""
        moves = dict(self.moves(layer, expert, tensors, sums)) if self.plan.request.reorder else {}
        for entry in layer.inputs:
            if entry.expert == expert:
                self.quantize_input([(linear.name, linear.index) for linear in entry.linears], sums[entry.key], moves)

    def quantize_input(
        self,
        linears: Iterable[LinearKey],
        statistics: Statistics,
        moves: Mapping[LinearKey, Move] = MappingProxyType({}),
        seen: RoundedInput | None = None,
    ) -> None:
        """Round and write the matrices of the linears that read one input; those of `moves` in both orders.

        seen: the input that the rounded layers of one file give; then only this file is written.
        """
        prepared: dict[tuple[int, bool], _Prepared | str] = {}
        for key in linears:
            for matrix in self._matrices.get(key, []):
                move, targets = moves.get(key), self._targets[matrix.tensor.name]
                if seen is not None:
                    targets = [target for target in targets if target.label == seen.label]
                in_place = [target for target in targets if move is None or target.label not in move.moved.labels]
                moving = [target for target in targets if target not in in_place]
                for change, some in ((None, in_place), (move, moving)):
                    if not some:
                        continue
                    columns = change if change is not None and change.moved.part == "down" else None
                    order = id(matrix.columns), columns is not None
                    if order not in prepared:
                        prepared[order] = self._prepare(matrix, seen.sums if seen else statistics, columns)
                    importance = _importance(statistics, matrix.columns)
                    if columns is not None:
                        importance = columns.moved.order.squares(importance)
                    written = None if seen is None else np.empty(matrix.shape, np.float32)
                    self._round(matrix, prepared[order], importance, some, change, written)
                    if seen is not None and written is not None and key in seen.source:
                        self._replace(matrix, written, change, seen.source[key], seen.rounded[key])

    def moves(
        self, layer: LayerLinears, expert: int | None, tensors: Mapping[str, Array], sums: Mapping[str, Statistics]
    ) -> Iterator[tuple[LinearKey, Move]]:
        """The linears whose neurons move, in the files where the type of down is REORDERED."""
        for neurons in neurons_of(layer, expert, tensors):
            matrices = {
                part: self._matrices.get((linear.name, linear.index), []) for part, linear in neurons.parts.items()
            }
            if not all(len(some) == 1 and self._is_plain(some[0]) for some in matrices.values()):
                continue
            of_down = self._targets[matrices["down"][0].tensor.name]
            labels = frozenset(target.label for target in of_down if target.slot.type == REORDERED)
            weights = {part: linear_matrix(tensors, linear) for part, linear in neurons.parts.items()}
            if not labels or not all(self._has_rows(matrices[part][0], weights[part]) for part in weights):
                continue
            order = neuron_order(_importance(sums[neurons.input], None), weights["down"])
            for part, linear in neurons.parts.items() if order is not None else ():
                assert order is not None
                moved, at = Moved(part, order, labels), matrices[part][0]
                self.moved[matrix_key(at.tensor.name, at.number)] = moved
                yield (linear.name, linear.index), Move(moved, weights[part])

    def _is_plain(self, matrix: _Matrix) -> bool:
        return matrix.columns is None and matrix.tensor.row_step == 1 and matrix.tensor.type in _DTYPES

    def _has_rows(self, matrix: _Matrix, weight: Array) -> bool:
        """Whether the GGUF matrix has the rows of `weight` in the same order, by some of them."""
        tensor, rows = matrix.tensor, len(weight)
        if (matrix.rows, tensor.n_columns) != weight.shape:
            return False
        first = matrix.number * rows
        return all(
            np.array_equal(
                widen(self.plan.model.read_rows(tensor.name, first + at, first + at + 1), tensor), weight[at : at + 1]
            )
            for at in (0, 1, rows // 2, rows - 1)
        )

    def _prepare(self, matrix: _Matrix, sums: Statistics | AsymmetricSums, move: Move | None) -> _Prepared | str:
        """H of the input, and the correction of the weights; or why H cannot be used."""
        statistics, cross = (sums.statistics, sums.cross) if isinstance(sums, AsymmetricSums) else (sums, None)
        gram, held_out = statistics.gram, statistics.held_out
        assert gram is not None and held_out is not None
        workers = self.workers if device(gram) is None else SERIAL
        if matrix.columns is not None:
            order = place(matrix.columns, device(gram))
            gram, held_out = square(gram, order), square(held_out, order)
            cross = None if cross is None else square(cross, order)
        if move is not None:
            gram, held_out = move.moved.order.gram(gram), move.moved.order.gram(held_out)
            cross = None if cross is None else move.moved.order.gram(cross)
        count, name = statistics.gram_tokens, f"the input of {matrix.tensor.name}"
        try:
            rows = self._middle_rows(matrix)
            steps = step_sizes(rows if move is None else move.moved.order.columns(rows), _GROUP)
            held = HeldOut(held_out, statistics.held_out_tokens)
            trust = choose_trust(gram, count, held, steps, workers, rule=GGUF_RULE)
            by = curvature(gram, count, damp=trust.damp, shrink=trust.shrink, name=name, workers=workers)
        except CalibrationError as error:
            return str(error)
        return _Prepared(by, None if cross is None else correction(cross, by, workers))

    def _middle_rows(self, matrix: _Matrix) -> Array:
        """Some rows of a matrix, float32 (n, n_in)."""
        tensor = matrix.tensor
        step = self._step(tensor, _SAMPLED_ROWS)
        middle = max(0, (matrix.rows - step) // 2) // tensor.row_step * tensor.row_step
        first = matrix.number * matrix.rows
        stop = first + min(middle + step, matrix.rows)
        return widen(self.plan.model.read_rows(tensor.name, first + middle, stop), tensor)

    def _round(
        self,
        matrix: _Matrix,
        prepared: _Prepared | str,
        importance: Array,
        targets: Sequence[Target],
        move: Move | None,
        written: Array | None,
    ) -> None:
        """Round and write a matrix. `written` (n_out, n_in) takes the values of the only target, if it is given."""
        tensor, sweeps = matrix.tensor, self.plan.request.sweeps
        starts = range(0, matrix.rows, self._step(tensor, _ROWS))
        reasons = self.rounded.setdefault(tensor.name, [])
        if isinstance(prepared, str):
            reasons.append(prepared)
        corrected = self._corrected(matrix, prepared, importance, targets)
        if isinstance(prepared, _Prepared) and device(prepared.curvature.hessian) is not None:
            targets = self._round_on_device(matrix, prepared.curvature, targets, move, corrected, written)

        def one(start: int) -> None:
            rows, floats = self._rows(matrix, start, starts.step, move)
            quantized: dict[GGMLQuantizationType, NDArray[np.uint8]] = {}
            for target in targets:
                kind = target.slot.type
                if kind not in quantized:
                    if _feeds_back(kind, tensor) and isinstance(prepared, _Prepared):
                        wanted = floats if kind not in corrected else floats + floats @ corrected[kind]
                        quantized[kind] = quantize_with_feedback(kind, wanted, prepared.curvature, sweeps=sweeps)
                    else:
                        quantized[kind] = quantize_chunk(kind, rows, floats, tensor, importance, target.label)
                write_at(target, quantized[kind], matrix.number * matrix.rows + start)
                if written is not None:
                    written[start : start + len(rows)] = dequantize_rows(kind, quantized[kind], tensor.n_columns)

        if targets:
            self.workers.map(one, list(starts))

    def _corrected(
        self, matrix: _Matrix, prepared: _Prepared | str, importance: Array, targets: Sequence[Target]
    ) -> dict[GGMLQuantizationType, Array]:
        """The correction for the types that are not exact for the weights."""
        if isinstance(prepared, str) or prepared.correction is None:
            return {}
        rows, kinds = self._middle_rows(matrix), {target.slot.type for target in targets}.intersection(FORMATS)
        return {kind: prepared.correction for kind in kinds if not holds_exactly(kind, rows, importance)}

    def _replace(self, matrix: _Matrix, written: Array, move: Move | None, source: Array, rounded: Array) -> None:
        """Put the values of a written matrix into `rounded`, whose rows (n_out, n_in) `source` has in another order.

        Rows that the source does not have as they are (a family scales them) stay the source's.
        """
        if move is not None:
            rounded[:] = move.moved.restored(written)
            return
        columns = slice(None) if matrix.columns is None else matrix.columns
        places = {_digest(row[columns]): place for place, row in enumerate(source)}
        step = self._step(matrix.tensor, _ROWS)
        for start in range(0, len(written), step):
            rows = self._rows(matrix, start, step, None)[1]
            for row, values in zip(rows, written[start : start + step], strict=True):
                at = places.get(_digest(row))
                if at is not None:
                    rounded[at, columns] = values

    def _round_on_device(
        self,
        matrix: _Matrix,
        prepared: Curvature,
        targets: Sequence[Target],
        move: Move | None,
        corrected: Mapping[GGMLQuantizationType, Array],
        written: Array | None,
    ) -> list[Target]:
        """Round and write on the device of torch that has `prepared`; the targets whose type has no levels are left."""
        tensor = matrix.tensor
        own = [target for target in targets if _feeds_back(target.slot.type, tensor)]
        read = self._step(tensor, _ROWS)
        size = read * max(1, rows_at_once(tensor.n_columns) // read)
        for start in range(0, matrix.rows if own else 0, size):
            starts = range(start, min(start + size, matrix.rows), read)
            pieces = self.workers.map(lambda at: self._rows(matrix, at, read, move)[1], list(starts))
            weight = place(np.concatenate(pieces), device(prepared.hessian))
            del pieces
            for kind in dict.fromkeys(target.slot.type for target in own):
                wanted = weight if kind not in corrected else weight + weight @ corrected[kind]
                rounded = quantize_with_feedback(
                    kind, wanted, prepared, sweeps=self.plan.request.sweeps, workers=self.workers
                )
                if written is not None:
                    written[start : start + len(rounded)] = dequantize_rows(kind, rounded, tensor.n_columns)
                for target in own:
                    if target.slot.type == kind:
                        write_at(target, rounded, matrix.number * matrix.rows + start)
        return [target for target in targets if target not in own]

    @staticmethod
    def _step(tensor: ModelTensor, rows: int) -> int:
        """About `rows` rows that can be read at once."""
        return tensor.row_step * max(1, rows // tensor.row_step)

    def _rows(self, matrix: _Matrix, start: int, count: int, move: Move | None) -> tuple[NDArray[np.generic], Array]:
        """At most `count` rows of a matrix as they are stored, and in float32. Raises CheckpointError."""
        tensor = matrix.tensor
        stop = min(start + count, matrix.rows)
        if move is not None:
            floats = move.moved.rows(move.weight, start, stop)
            return floats.astype(_DTYPES[tensor.type]), floats
        first = matrix.number * matrix.rows
        rows = self.plan.model.read_rows(tensor.name, first + start, first + stop)
        floats = widen(rows, tensor)
        check_finite(floats, tensor, first + start)
        return rows, floats


def _digest(row: Array) -> bytes:
    return blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16).digest()


def _feeds_back(kind: GGMLQuantizationType, tensor: ModelTensor) -> bool:
    """Whether `tensor` is rounded to `kind` with error feedback."""
    return kind in FORMATS and kind != tensor.type


def without_feedback(output: GgufOutput, rounded: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The quantized tensors of a file that were rounded without feedback, at least in part, and why."""
    reasons: dict[str, str] = {}
    for choice in output.choices:
        if choice.type in _UNQUANTIZED:
            continue
        if choice.type not in FORMATS:
            reasons[choice.name] = f"{choice.type.name} has no integer levels"
        elif choice.name not in rounded:
            reasons[choice.name] = "no Gram matrix of its input"
        elif rounded[choice.name]:
            reasons[choice.name] = rounded[choice.name][0]
    return reasons


def _importance(statistics: Statistics, columns: NDArray[np.int64] | None) -> Array:
    """The importances of the columns, as in the importance matrix: mean squares, or 1 without tokens."""
    if not statistics.tokens:
        return np.ones(len(statistics.squares), np.float32)
    means: Array = statistics.squares.astype(np.float32) / np.float32(statistics.tokens)
    return means if columns is None else np.ascontiguousarray(means[columns])
