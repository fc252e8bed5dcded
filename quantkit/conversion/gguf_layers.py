"""GGUF tensors of one layer at a time, rounded with error feedback while the calibration holds their Gram matrix.

The bytes go to their place in the partial files. The pass over the model then leaves these tensors out. Where the Gram
matrices are on a device of torch, the matrices are rounded there.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.conversion.gguf_matrices import Array, GgufMatrix, Move
from quantkit.conversion.gguf_pass import Target, open_targets
from quantkit.conversion.gguf_rounding import MatrixRounding, PreparedInput, prepare_input
from quantkit.conversion.neurons import neurons_of
from quantkit.forward.linears import LayerLinears
from quantkit.gguf.blocks import FORMATS
from quantkit.imatrix.names import LinearKey
from quantkit.outputs.gguf_files import GgufOutput, GgufPlan
from quantkit.outputs.model import FLOAT_TYPES
from quantkit.quant.fold import matrix as linear_matrix
from quantkit.quant.neurons import REORDERED, Moved, matrix_key, neuron_order
from quantkit.stream.asymmetric_sums import AsymmetricSums
from quantkit.stream.statistics import Statistics
from quantkit.workers import Workers

_UNQUANTIZED = (*FLOAT_TYPES.values(), GGMLQuantizationType.I32)


@dataclass(frozen=True)
class RoundedInput:
    """An input as the rounded layers of the file `label` give it, and the weights of its linears.

    `source`, `rounded`: by linear, its weights (n_out, n_in); `rounded` takes the values that are written.
    """

    label: str
    sums: AsymmetricSums
    source: Mapping[LinearKey, Array]
    rounded: Mapping[LinearKey, Array]


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
        self._matrices: dict[LinearKey, list[GgufMatrix]] = {}
        for name, keys in sources.items():
            if name in tensors and self._has_levels(name):
                for number, key in enumerate(keys):
                    n_rows = tensors[name].n_rows // len(keys)
                    matrix = GgufMatrix(plan.model, tensors[name], number, n_rows, columns.get(name))
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
        prepared: dict[tuple[int, bool], PreparedInput | str] = {}
        linears = list(linears)
        n_rows = sum(matrix.n_rows for key in linears for matrix in self._matrices.get(key, []))
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
                        sums = seen.sums if seen else statistics
                        prepared[order] = prepare_input(
                            matrix, sums, columns, n_rows, self.workers, residual=_is_source(matrix, seen, key)
                        )
                    importance = _importance(statistics, matrix.columns)
                    if columns is not None:
                        importance = columns.moved.order.squares(importance)
                    written = None if seen is None else np.empty(matrix.shape, np.float32)
                    self._note(matrix, prepared[order])
                    rounding = MatrixRounding(prepared[order], importance, self.plan.request.sweeps, self.workers)
                    rounding.write(matrix, some, change, written)
                    if seen is not None and written is not None and key in seen.source:
                        matrix.restore(written, change, seen.source[key], seen.rounded[key])

    def quantize_without_feedback(
        self, linears: Iterable[LinearKey], statistics: Statistics, labels: Collection[str]
    ) -> None:
        """Write the matrices of the linears that read one input into the files `labels`, rounded as in the pass."""
        for matrix in (matrix for key in linears for matrix in self._matrices.get(key, [])):
            targets = [target for target in self._targets[matrix.tensor.name] if target.label in labels]
            importance = _importance(statistics, matrix.columns)
            rounding = MatrixRounding("", importance, self.plan.request.sweeps, self.workers)
            rounding.write(matrix, targets, None, None)

    def _note(self, matrix: GgufMatrix, prepared: PreparedInput | str) -> None:
        """Note that the matrix is rounded, and why it is without feedback."""
        reasons = self.rounded.setdefault(matrix.tensor.name, [])
        if isinstance(prepared, str):
            reasons.append(prepared)

    def moves(
        self, layer: LayerLinears, expert: int | None, tensors: Mapping[str, Array], sums: Mapping[str, Statistics]
    ) -> Iterator[tuple[LinearKey, Move]]:
        """The linears whose neurons move, in the files where the type of down is REORDERED."""
        for neurons in neurons_of(layer, expert, tensors):
            matrices = {
                part: self._matrices.get((linear.name, linear.index), []) for part, linear in neurons.parts.items()
            }
            if not all(len(some) == 1 and some[0].is_plain for some in matrices.values()):
                continue
            of_down = self._targets[matrices["down"][0].tensor.name]
            labels = frozenset(target.label for target in of_down if target.slot.type == REORDERED)
            weights = {part: linear_matrix(tensors, linear) for part, linear in neurons.parts.items()}
            if not labels or not all(matrices[part][0].has_rows(weights[part]) for part in weights):
                continue
            order = neuron_order(_importance(sums[neurons.input], None), weights["down"])
            for part, linear in neurons.parts.items() if order is not None else ():
                assert order is not None
                moved, at = Moved(part, order, labels), matrices[part][0]
                self.moved[matrix_key(at.tensor.name, at.number)] = moved
                yield (linear.name, linear.index), Move(moved, weights[part])


def without_feedback(output: GgufOutput, rounded: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The quantized tensors of a file that were rounded without feedback, at least in part, and why."""
    reasons: dict[str, str] = {}
    for choice in output.choices:
        if choice.type in _UNQUANTIZED:
            continue
        if choice.type not in FORMATS:
            reasons[choice.name] = f"{choice.type.name} has no integer levels"
        elif choice.name not in rounded:
            reasons[choice.name] = "the calibration does not cover its input"
        elif rounded[choice.name]:
            reasons[choice.name] = rounded[choice.name][0]
    return reasons


def _is_source(matrix: GgufMatrix, seen: RoundedInput | None, key: LinearKey) -> bool:
    """Whether the rows of a matrix are those of the source's linear."""
    return seen is not None and key in seen.source and matrix.has_rows(seen.source[key])


def _importance(statistics: Statistics, columns: NDArray[np.int64] | None) -> Array:
    """The importances of the columns, as in the importance matrix: mean squares, or 1 without tokens."""
    if not statistics.tokens:
        return np.ones(len(statistics.squares), np.float32)
    means: Array = statistics.squares.astype(np.float32) / np.float32(statistics.tokens)
    return means if columns is None else np.ascontiguousarray(means[columns])
