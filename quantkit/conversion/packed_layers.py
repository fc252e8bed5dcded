"""What AWQ and GPTQ do with a layer as the stream brings it: quantize, pack, write, note what it cost."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.forward.linears import Input, LayerLinears, Linear, NormFold, RowFold
from quantkit.outputs.packed_folders import FolderPlan
from quantkit.packed.packing import pack_awq, pack_gptq
from quantkit.packed.writer import FolderWriter
from quantkit.quant.awq import quantize_awq, search_scale
from quantkit.quant.fold import apply_fold, fold_input, fold_source, matrix
from quantkit.quant.gptq import gptq
from quantkit.quant.grid import Quantized
from quantkit.quant.rounding import output_error
from quantkit.stream.statistics import Statistics

Array = NDArray[np.float32]
Tensors = dict[str, Array]
ReadWhole = Callable[[str], NDArray[np.float32]]

# Of how many experts the weights are looked at when the scale of the norm before all of them is searched.
_EXPERTS_LOOKED_AT = 8
_ROWS_LOOKED_AT = 512
# Rows of a matrix, evenly spread, whose output error is noted.
_ROWS_NOTED = 128


@dataclass
class FolderWatcher:
    """Writes one folder layer by layer. Of the current layer: `notes` are the linears' errors, `damping` by input.

    `propagate`: the tensors handed back hold what a runtime will see.
    """

    plan: FolderPlan
    writer: FolderWriter
    read: ReadWhole
    propagate: bool = False
    notes: dict[str, float] = field(default_factory=dict)
    damping: dict[str, float] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """A new layer begins."""
        self.notes.clear()
        self.damping.clear()
        self.written.clear()

    def hashes(self) -> dict[str, str]:
        """sha256 of every tensor of this layer as it was written."""
        return {name: self.writer.sha256(name) for name in self.written}

    def dense(self, layer: LayerLinears, tensors: Tensors, statistics: Mapping[str, Statistics]) -> Tensors:
        raise NotImplementedError

    def expert(
        self, layer: LayerLinears, expert: int, tensors: Tensors, statistics: Mapping[str, Statistics]
    ) -> Tensors:
        raise NotImplementedError

    def wanted(self, seen: Input) -> list[Linear]:
        """The linears of an input that are quantized."""
        return [linear for linear in seen.linears if linear.name in self.plan.quantized]

    def put(self, tensors: Tensors, linear: Linear, quantized: Quantized, gram: Array) -> None:
        """Write a quantized linear and note its error relative to what it should give, over the calibration text."""
        weight = matrix(tensors, linear)
        seen = quantized.dequantized()
        some = slice(None, None, -(-len(weight) // _ROWS_NOTED))
        self.notes[linear.name] = output_error(weight[some], seen[some], gram)[1]
        pack = pack_awq if self.plan.request.method == "awq" else pack_gptq
        for suffix, values in pack(quantized).items():
            self._write(f"{linear.name}.{suffix}", values)
        if self.propagate:
            weight[:] = seen

    def put_kept(self, tensors: Tensors, linears: Iterable[Linear]) -> None:
        """Write every tensor that is not the weight of a quantized linear."""
        weights = {linear.name + linear.form.weight for linear in linears if linear.name in self.plan.quantized}
        for name, values in tensors.items():
            if name not in weights:
                self._write(name, values)

    def _write(self, name: str, values: NDArray[Any]) -> None:
        self.writer.write(name, values)
        self.written.append(name)


class GptqWatcher(FolderWatcher):
    """GPTQ (arXiv 2210.17323): the linears of an input share its Gram matrix and one factor of it."""

    def dense(self, layer: LayerLinears, tensors: Tensors, statistics: Mapping[str, Statistics]) -> Tensors:
        return self._some([each for each in layer.inputs if each.expert is None], tensors, statistics)

    def expert(
        self, layer: LayerLinears, expert: int, tensors: Tensors, statistics: Mapping[str, Statistics]
    ) -> Tensors:
        return self._some([each for each in layer.inputs if each.expert == expert], tensors, statistics)

    def _some(self, inputs: list[Input], tensors: Tensors, statistics: Mapping[str, Statistics]) -> Tensors:
        request = self.plan.request
        self.put_kept(tensors, (linear for each in inputs for linear in each.linears))
        for seen in inputs:
            linears, found = self.wanted(seen), statistics[seen.key]
            if not linears:
                continue
            assert found.gram is not None
            solution = gptq(
                [matrix(tensors, linear) for linear in linears],
                found.gram,
                found.gram_tokens,
                request.grid,
                damp=request.damp,
                act_order=request.act_order,
                static_groups=request.static_groups,
                name=f"what {linears[0].name} sees",
            )
            self.damping[seen.key] = solution.damp
            for linear, quantized in zip(linears, solution.matrices, strict=True):
                self.put(tensors, linear, quantized, found.gram)
        return tensors


class AwqWatcher(FolderWatcher):
    """AWQ (arXiv 2306.00978): scales are folded into what stands before a linear, then ranges clipped, then rounded."""

    def begin(self) -> None:
        super().begin()
        self._scales: dict[str, Array] = {}

    def dense(self, layer: LayerLinears, tensors: Tensors, statistics: Mapping[str, Statistics]) -> Tensors:
        inputs = [each for each in layer.inputs if each.expert is None]
        here = {each.key for each in inputs}
        for fold in layer.folds:
            if isinstance(fold, RowFold):
                if fold.input in here:
                    self._fold_rows(layer, fold, tensors, statistics)
            else:
                self._fold_norm(layer, fold, here, tensors, statistics)
        self._round(inputs, tensors, statistics)
        return tensors

    def expert(
        self, layer: LayerLinears, expert: int, tensors: Tensors, statistics: Mapping[str, Statistics]
    ) -> Tensors:
        inputs = [each for each in layer.inputs if each.expert == expert]
        for seen in inputs:
            if seen.key in self._scales:
                fold_input(tensors, seen, self._scales[seen.key])
        here = {each.key for each in inputs}
        for fold in layer.folds:
            if isinstance(fold, RowFold) and fold.input in here:
                self._fold_rows(layer, fold, tensors, statistics)
        self._round(inputs, tensors, statistics)
        return tensors

    def _fold_norm(
        self,
        layer: LayerLinears,
        fold: NormFold,
        here: set[str],
        tensors: Tensors,
        statistics: Mapping[str, Statistics],
    ) -> None:
        """The scale of a norm, by all that sees it: over the tokens of all experts, and some of those experts."""
        inputs = [layer.find(key) for key in fold.inputs]
        weights = [matrix(tensors, linear) for each in inputs if each.key in here for linear in self.wanted(each)]
        apart = [each for each in inputs if each.key not in here]
        for each in apart[:: max(1, len(apart) // _EXPERTS_LOOKED_AT)]:
            weights += [self._some_rows(linear) for linear in self.wanted(each)]
        gram = statistics[fold.inputs[0]].gram
        assert gram is not None
        if not weights:
            return
        scale = search_scale(weights, gram, self.plan.request.grid, name=f"what {fold.norm} gives").values
        fold_source(tensors, fold, scale)
        for each in inputs:
            self._scales[each.key] = scale
            if each.key in here:
                fold_input(tensors, each, scale)

    def _fold_rows(
        self, layer: LayerLinears, fold: RowFold, tensors: Tensors, statistics: Mapping[str, Statistics]
    ) -> None:
        linears = self.wanted(layer.find(fold.input))
        gram = statistics[fold.input].gram
        assert gram is not None
        if not linears:
            return
        ties = np.array(fold.rows)
        scale = search_scale(
            [matrix(tensors, linear) for linear in linears],
            gram,
            self.plan.request.grid,
            ties=ties,
            name=f"what {linears[0].name} sees",
        ).values
        apply_fold(tensors, layer, fold, scale)
        self._scales[fold.input] = scale

    def _round(self, inputs: list[Input], tensors: Tensors, statistics: Mapping[str, Statistics]) -> None:
        self.put_kept(tensors, (linear for each in inputs for linear in each.linears))
        for seen in inputs:
            gram = statistics[seen.key].gram
            assert gram is not None
            scale = self._scales.get(seen.key)
            if scale is not None:
                gram = gram / (scale[:, None] * scale)
            for linear in self.wanted(seen):
                self.put(tensors, linear, quantize_awq(matrix(tensors, linear), gram, self.plan.request.grid), gram)

    def _some_rows(self, linear: Linear) -> Array:
        """Rows of an expert that is not in memory, evenly taken; one whole matrix is, for a moment."""
        stored = self.read(linear.name + linear.form.weight)
        weight = stored.T if linear.form.turned else stored
        return np.array(weight[:: -(-len(weight) // _ROWS_LOOKED_AT)], np.float32)


WATCHERS: dict[str, type[FolderWatcher]] = {"awq": AwqWatcher, "gptq": GptqWatcher}


class Keeper:
    """Hands a layer to every watcher in turn, and keeps sums of squares and how many tokens each expert was sent.

    Watchers change the tensors they are given; only the last may (AWQ folds scales into them), the first of two must
    leave them as they are, which GPTQ does unless it propagates.
    """

    def __init__(self, watchers: Sequence[FolderWatcher]) -> None:
        self.watchers = watchers
        self.squares: dict[str, NDArray[np.float64]] = {}
        self.tokens: dict[str, int] = {}
        self.starved: list[str] = []

    def dense(self, layer: LayerLinears, tensors: Tensors, statistics: Mapping[str, Statistics]) -> Tensors:
        self._keep(statistics)
        for watcher in self.watchers:
            tensors = watcher.dense(layer, tensors, statistics)
        return tensors

    def expert(
        self, layer: LayerLinears, expert: int, tensors: Tensors, statistics: Mapping[str, Statistics]
    ) -> Tensors:
        self._keep(statistics)
        first = next(iter(statistics.values()))
        self.tokens[f"expert {expert}"] = first.tokens
        if first.gram_tokens > first.tokens:
            self.starved.append(f"expert {expert}")
        for watcher in self.watchers:
            tensors = watcher.expert(layer, expert, tensors, statistics)
        return tensors

    def _keep(self, statistics: Mapping[str, Statistics]) -> None:
        for key, each in statistics.items():
            self.squares[key] = np.append(each.squares, each.tokens)
