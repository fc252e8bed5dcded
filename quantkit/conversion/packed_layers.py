"""AWQ and GPTQ on one layer at a time: quantize its linears, pack them, write them, measure their errors."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

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
from quantkit.workers import Workers

Array = NDArray[np.float32]
Tensors = dict[str, Array]
Sums = Mapping[str, Statistics]

# The scale of a norm before routed experts is searched on so many experts, and on so many rows of each.
_SAMPLED_EXPERTS, _SAMPLED_ROWS = 8, 512
# The output error of a linear is measured on so many rows, evenly spread.
_ERROR_ROWS = 128


class LayerReader(Protocol):
    """What uses the statistics of a layer while they are in memory."""

    def begin(self) -> None:
        """Start a new layer."""

    def quantize(self, layer: LayerLinears, expert: int | None, tensors: Tensors, sums: Sums) -> None:
        """Quantize and write the linears of one routed expert, or with None all others of the layer."""


@dataclass
class LayerQuantizer:
    """Writes one folder layer by layer. `errors` and `damping` (by input) are those of the current layer.

    `read` returns a whole tensor of the checkpoint. `propagate`: the tensors become those that a runtime will use.
    """

    plan: FolderPlan
    writer: FolderWriter
    read: Callable[[str], Array]
    workers: Workers
    propagate: bool = False
    errors: dict[str, float] = field(default_factory=dict)
    damping: dict[str, float] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """Start a new layer."""
        self.errors.clear()
        self.damping.clear()
        self.written.clear()

    def record(self) -> dict[str, Any]:
        """What the journal keeps of the layer, with the sha256 of every tensor as it was written."""
        errors = {name: round(error, 6) for name, error in self.errors.items()}
        hashes = {name: self.writer.sha256(name) for name in self.written}
        return {"errors": errors, "damping": dict(self.damping), "sha256": hashes}

    def quantize(self, layer: LayerLinears, expert: int | None, tensors: Tensors, sums: Sums) -> None:
        """Quantize and write the linears of one routed expert, or with None all others of the layer."""
        raise NotImplementedError

    def quantized(self, entry: Input) -> list[Linear]:
        """The linears of an input that are quantized."""
        return [linear for linear in entry.linears if linear.name in self.plan.quantized]

    def write_quantized(self, tensors: Tensors, linear: Linear, quantized: Quantized, gram: Array) -> None:
        """Write a quantized linear and measure the relative error of its output over the calibration text."""
        weight, rounded = matrix(tensors, linear), quantized.dequantized()
        rows = slice(None, None, -(-len(weight) // _ERROR_ROWS))
        self.errors[linear.name] = output_error(weight[rows], rounded[rows], gram)[1]
        pack = pack_awq if self.plan.request.method == "awq" else pack_gptq
        for suffix, values in pack(quantized).items():
            self._write(f"{linear.name}.{suffix}", values)
        if self.propagate:
            weight[:] = rounded

    def write_kept(self, tensors: Tensors, inputs: Iterable[Input]) -> None:
        """Write every tensor except the weights of quantized linears."""
        weights = {linear.name + linear.form.weight for entry in inputs for linear in self.quantized(entry)}
        for name, values in tensors.items():
            if name not in weights:
                self._write(name, values)

    def _write(self, name: str, values: NDArray[Any]) -> None:
        self.writer.write(name, values)
        self.written.append(name)


class GptqQuantizer(LayerQuantizer):
    """GPTQ (arXiv 2210.17323): the linears of one input share its Gram matrix and one factor of it."""

    def quantize(self, layer: LayerLinears, expert: int | None, tensors: Tensors, sums: Sums) -> None:
        request, inputs = self.plan.request, [entry for entry in layer.inputs if entry.expert == expert]
        self.write_kept(tensors, inputs)
        for entry in inputs:
            linears, statistics = self.quantized(entry), sums[entry.key]
            if not linears:
                continue
            assert statistics.gram is not None
            solution = gptq(
                [matrix(tensors, linear) for linear in linears],
                statistics.gram,
                statistics.gram_tokens,
                request.grid,
                damp=request.damp,
                act_order=request.act_order,
                static_groups=request.static_groups,
                name=f"the input of {linears[0].name}",
                workers=self.workers,
            )
            self.damping[entry.key] = solution.damp
            for linear, quantized in zip(linears, solution.matrices, strict=True):
                self.write_quantized(tensors, linear, quantized, statistics.gram)


class AwqQuantizer(LayerQuantizer):
    """AWQ (arXiv 2306.00978): fold scales into what precedes a linear, clip the ranges, round."""

    def begin(self) -> None:
        super().begin()
        self._scales: dict[str, Array] = {}

    def quantize(self, layer: LayerLinears, expert: int | None, tensors: Tensors, sums: Sums) -> None:
        inputs = [entry for entry in layer.inputs if entry.expert == expert]
        keys = {entry.key for entry in inputs}
        for entry in inputs:
            if entry.key in self._scales:  # the norm before the experts, scaled with the rest of the layer
                fold_input(tensors, entry, self._scales[entry.key])
        for fold in layer.folds:
            if isinstance(fold, RowFold) and fold.input in keys:
                self._fold_rows(layer, fold, tensors, sums)
            elif isinstance(fold, NormFold) and expert is None:
                self._fold_norm(layer, fold, tensors, sums)
        self.write_kept(tensors, inputs)
        for entry in inputs:
            gram, scale = _gram(sums, entry.key), self._scales.get(entry.key)
            if scale is not None:
                gram = gram / (scale[:, None] * scale)
            for linear in self.quantized(entry):
                rounded = quantize_awq(matrix(tensors, linear), gram, self.plan.request.grid, self.workers)
                self.write_quantized(tensors, linear, rounded, gram)

    def _fold_norm(self, layer: LayerLinears, fold: NormFold, tensors: Tensors, sums: Sums) -> None:
        """Scale a norm by one search over all linears that it feeds; of many experts only a sample counts."""
        inputs = [layer.find(key) for key in fold.inputs]
        dense = [entry for entry in inputs if entry.expert is None]
        routed = [entry for entry in inputs if entry.expert is not None]
        weights = [matrix(tensors, linear) for entry in dense for linear in self.quantized(entry)]
        for entry in routed[:: max(1, len(routed) // _SAMPLED_EXPERTS)]:
            weights += [self._sampled_rows(linear) for linear in self.quantized(entry)]
        if not weights:
            return
        gram, name = _gram(sums, fold.inputs[0]), f"the output of {fold.norm}"
        scale = search_scale(weights, gram, self.plan.request.grid, name=name, workers=self.workers).values
        fold_source(tensors, fold, scale)
        self._scales |= dict.fromkeys(fold.inputs, scale)
        for entry in dense:
            fold_input(tensors, entry, scale)

    def _fold_rows(self, layer: LayerLinears, fold: RowFold, tensors: Tensors, sums: Sums) -> None:
        linears, gram = self.quantized(layer.find(fold.input)), _gram(sums, fold.input)
        if not linears:
            return
        weights, ties = [matrix(tensors, linear) for linear in linears], np.array(fold.rows)
        name = f"the input of {linears[0].name}"
        scale = search_scale(weights, gram, self.plan.request.grid, ties=ties, name=name, workers=self.workers).values
        apply_fold(tensors, layer, fold, scale)
        self._scales[fold.input] = scale

    def _sampled_rows(self, linear: Linear) -> Array:
        """Evenly spread rows of an expert that is not in memory; for a moment one whole matrix is."""
        stored = self.read(linear.name + linear.form.weight)
        weight = stored.T if linear.form.turned else stored
        return np.array(weight[:: -(-len(weight) // _SAMPLED_ROWS)], np.float32)


QUANTIZERS: dict[str, type[LayerQuantizer]] = {"awq": AwqQuantizer, "gptq": GptqQuantizer}


class LayerSums:
    """Receives a layer from the stream: keeps its sums of squares and token counts, and runs every quantizer on it.

    GPTQ leaves the tensors as they are unless it propagates, AWQ scales them: so AWQ comes last.
    """

    def __init__(self, quantizers: Sequence[LayerReader]) -> None:
        self.quantizers = quantizers
        self.squares: dict[str, NDArray[np.float64]] = {}
        self.tokens: dict[str, int] = {}
        self.starved: list[str] = []
        for quantizer in quantizers:
            quantizer.begin()

    def dense(self, layer: LayerLinears, tensors: Tensors, statistics: Sums) -> Tensors:
        return self._run(layer, None, tensors, statistics)

    def expert(self, layer: LayerLinears, expert: int, tensors: Tensors, statistics: Sums) -> Tensors:
        first = next(iter(statistics.values()))
        self.tokens[f"expert {expert}"] = first.tokens
        if first.gram_tokens > first.tokens:
            self.starved.append(f"expert {expert}")
        return self._run(layer, expert, tensors, statistics)

    def _run(self, layer: LayerLinears, expert: int | None, tensors: Tensors, statistics: Sums) -> Tensors:
        self.squares |= {key: np.append(sums.squares, sums.tokens) for key, sums in statistics.items()}
        for quantizer in self.quantizers:
            quantizer.quantize(layer, expert, tensors, statistics)
        return tensors


def _gram(sums: Sums, key: str) -> Array:
    gram = sums[key].gram
    assert gram is not None
    return gram
