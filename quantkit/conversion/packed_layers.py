"""AWQ and GPTQ on one layer at a time: quantize its linears, pack them, write them, measure their errors."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quantkit.forward.linears import Input, LayerLinears, Linear, NormFold, RowFold
from quantkit.machine import release_freed_memory
from quantkit.outputs.packed_folders import FolderPlan
from quantkit.packed.float4 import Nvfp4Activations
from quantkit.packed.formats import FolderRequest, IntegerFormat, Packed
from quantkit.packed.writer import FolderWriter
from quantkit.quant.awq import search_scale
from quantkit.quant.awq_nearest import quantize_awq
from quantkit.quant.awq_nearest import search_scale as search_nearest_scale
from quantkit.quant.factor import SHRINK, Factor, factor
from quantkit.quant.fold import fold_input, fold_source, matrix
from quantkit.quant.gptq import round_with_feedback
from quantkit.quant.grid import Quantized
from quantkit.quant.held_out import Trust, choose_trust, step_sizes
from quantkit.quant.rounding import output_error
from quantkit.quant.smooth import search_smooth_scale
from quantkit.stream.statistics import Statistics
from quantkit.workers import Workers

Array = NDArray[np.float32]
Tensors = dict[str, Array]
Sums = Mapping[str, Statistics]

# The scale of a norm before routed experts is searched on this many experts, with this many rows each.
_SAMPLED_EXPERTS, _SAMPLED_ROWS = 8, 512
# The output error of a linear is measured on this many rows, evenly spread.
_ERROR_ROWS = 128


class LayerReader(Protocol):
    """What uses the statistics of a layer while they are in memory."""

    def begin(self) -> None:
        """Start a new layer."""

    def quantize(self, layer: LayerLinears, expert: int | None, tensors: Tensors, sums: Sums) -> None:
        """Quantize and write the linears of one routed expert, or with None all others of the layer."""


@dataclass
class LayerQuantizer:
    """Writes one folder layer by layer. `errors` (by linear) and raised `damping` (by input): of the current layer.

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

    def factor(
        self, entry: Input, sums: Sums, weights: Sequence[Array], *, damp: float | None = None, act_order: bool = True
    ) -> Factor:
        """The factor of an input's Gram matrix, for rounding `weights`. A damping that had to be raised is recorded.

        damp: None to choose it and the shrinkage on held-out samples.
        """
        statistics, name = sums[entry.key], f"the input of {entry.linears[0].name}"
        assert statistics.gram is not None
        release_freed_memory()  # of the threads that rounded the last input
        trust = Trust(SHRINK, damp) if damp is not None else self._trust(statistics, weights)
        factored = factor(
            statistics.gram,
            statistics.gram_tokens,
            damp=trust.damp,
            shrink=trust.shrink,
            act_order=act_order,
            name=name,
            workers=self.workers,
        )
        release_freed_memory()
        if factored.raised:
            self.damping[entry.key] = factored.damp
        return factored

    def _trust(self, statistics: Statistics, weights: Sequence[Array]) -> Trust:
        assert statistics.gram is not None
        grid = self.plan.request.grid
        rows = np.concatenate([weight[:: -(-len(weight) // _ERROR_ROWS)] for weight in weights])
        return choose_trust(
            statistics.gram,
            statistics.gram_tokens,
            statistics.held_out,
            statistics.held_out_tokens,
            step_sizes(rows, grid.group_size(rows.shape[1])),
            self.workers,
        )

    def round(
        self,
        tensors: Tensors,
        linears: Sequence[Linear],
        factored: Factor,
        statistics: Statistics,
        *,
        static_groups: bool = True,
        scale: Array | None = None,
    ) -> None:
        """Round linears of one input with error feedback and write them. Their columns are multiplied by `scale`."""
        assert statistics.gram is not None
        weights = [matrix(tensors, linear) for linear in linears]
        rounded = round_with_feedback(
            weights, factored, self.plan.request.grid, static_groups=static_groups, workers=self.workers
        )
        gram = statistics.gram if scale is None else statistics.gram / (scale[:, None] * scale)
        for linear, quantized in zip(linears, rounded, strict=True):
            self.write_quantized(tensors, linear, quantized, gram)

    def write_quantized(self, tensors: Tensors, linear: Linear, quantized: Quantized, gram: Array) -> None:
        """Write a quantized linear and measure the relative error of its output over the calibration text."""
        folder_format, request = self.plan.format, self.plan.request
        assert isinstance(folder_format, IntegerFormat)
        quantized = folder_format.as_stored(quantized, request)
        packed = folder_format.pack(quantized, request)
        self.write_packed(matrix(tensors, linear), linear, packed, quantized.dequantized(), gram)

    def write_packed(self, weight: Array, linear: Linear, packed: Packed, rounded: Array, gram: Array) -> None:
        """Write the tensors of a linear; `rounded`: what they mean, for its error."""
        rows = slice(None, None, -(-len(weight) // _ERROR_ROWS))
        self.errors[linear.name] = output_error(weight[rows], rounded[rows], gram)[1]
        for suffix, values in packed.items():
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
            linears = self.quantized(entry)
            if linears:
                weights = [matrix(tensors, linear) for linear in linears]
                factored = self.factor(entry, sums, weights, damp=request.damp, act_order=request.act_order)
                self.round(tensors, linears, factored, sums[entry.key], static_groups=request.static_groups)


class AwqQuantizer(LayerQuantizer):
    """AWQ (arXiv 2306.00978): fold scales into what precedes a linear, clip the ranges, round with error feedback.

    Inputs are visited from the last to the first, since a scale changes the rows of the linear before it. The factor of
    one input serves the search of its scale and the rounding. Only one factor is in memory.
    """

    def begin(self) -> None:
        super().begin()
        self._scales: dict[str, Array] = {}

    def quantize(self, layer: LayerLinears, expert: int | None, tensors: Tensors, sums: Sums) -> None:
        inputs = [entry for entry in layer.inputs if entry.expert == expert]
        for entry in inputs:
            if entry.key in self._scales:  # the norm before the experts, scaled with the rest of the layer
                fold_input(tensors, entry, self._scales[entry.key])
        for entry in reversed(inputs):
            linears = self.quantized(entry)
            fold = None if entry.key in self._scales else _fold_of(layer, entry)
            searched = self._searched(layer, fold, tensors) if fold is not None else []
            if not (linears or searched):
                continue
            factored = self.factor(entry, sums, searched or [matrix(tensors, linear) for linear in linears])
            if fold is not None and searched:
                ties = np.array(fold.rows) if isinstance(fold, RowFold) else None
                self._fold(layer, fold, expert, tensors, self._scale(searched, factored, sums[entry.key], ties))
            scale = self._scales.get(entry.key)
            if linears:
                factored = factored if scale is None else factored.scaled(scale)
                self.round(tensors, linears, factored, sums[entry.key], scale=scale)
        self.write_kept(tensors, inputs)

    def _scale(
        self, weights: Sequence[Array], factored: Factor, statistics: Statistics, ties: NDArray[Any] | None
    ) -> Array:
        """The scale (n_in,) of an input of linears with these weights."""
        return search_scale(weights, factored, self.plan.request.grid, ties=ties, workers=self.workers).values

    def _searched(self, layer: LayerLinears, fold: NormFold | RowFold, tensors: Tensors) -> list[Array]:
        """The matrices by which the scale of a fold is searched; of many experts that a norm feeds, only a sample."""
        keys = (fold.input,) if isinstance(fold, RowFold) else fold.inputs
        inputs = [layer.find(key) for key in keys]
        if isinstance(fold, RowFold):
            return [matrix(tensors, linear) for entry in inputs for linear in self.quantized(entry)]
        dense = [entry for entry in inputs if entry.expert is None]
        routed = [entry for entry in inputs if entry.expert is not None]
        weights = [matrix(tensors, linear) for entry in dense for linear in self.quantized(entry)]
        for entry in routed[:: max(1, len(routed) // _SAMPLED_EXPERTS)]:
            weights += [self._sampled_rows(linear) for linear in self.quantized(entry)]
        return weights

    def _fold(
        self, layer: LayerLinears, fold: NormFold | RowFold, expert: int | None, tensors: Tensors, scale: Array
    ) -> None:
        """Apply a scale to what is in memory; experts that come later take it when they come."""
        keys = (fold.input,) if isinstance(fold, RowFold) else fold.inputs
        fold_source(tensors, fold, scale)
        for key in keys:
            self._scales[key] = scale
            if layer.find(key).expert == expert:
                fold_input(tensors, layer.find(key), scale)

    def _sampled_rows(self, linear: Linear) -> Array:
        """Evenly spread rows of an expert that is not in memory; for a moment one whole matrix is."""
        stored = self.read(linear.name + linear.form.weight)
        weight = stored.T if linear.form.turned else stored
        return np.array(weight[:: -(-len(weight) // _SAMPLED_ROWS)], np.float32)


class SmoothQuantizer(AwqQuantizer):
    """SmoothQuant (arXiv 2211.10438): scales that make activations easy to round. Weights are rounded as by AWQ."""

    def _scale(
        self, weights: Sequence[Array], factored: Factor, statistics: Statistics, ties: NDArray[Any] | None
    ) -> Array:
        assert statistics.maxima is not None
        return search_smooth_scale(weights, statistics.maxima, np.concatenate(statistics.rows), ties=ties).values


class Float4Quantizer(LayerQuantizer):
    """NVFP4 weights, rounded to nearest, and the scale of the inputs by their largest magnitude in the calibration."""

    def quantize(self, layer: LayerLinears, expert: int | None, tensors: Tensors, sums: Sums) -> None:
        folder_format, inputs = self.plan.format, [entry for entry in layer.inputs if entry.expert == expert]
        assert isinstance(folder_format, Nvfp4Activations)
        self.write_kept(tensors, inputs)
        for entry in inputs:
            linears, statistics = self.quantized(entry), sums[entry.key]
            assert statistics.maxima is not None and statistics.gram is not None
            weights = [matrix(tensors, linear) for linear in linears]
            packed = folder_format.pack_input(weights, float(statistics.maxima.max(initial=0)), self.plan.request)
            for linear, weight, own in zip(linears, weights, packed, strict=True):
                self.write_packed(weight, linear, own, folder_format.unpacked(own), statistics.gram)


class NearestAwqQuantizer(AwqQuantizer):
    """AWQ as in the paper: scales and ranges searched for rounding to nearest, and that rounding."""

    def quantize(self, layer: LayerLinears, expert: int | None, tensors: Tensors, sums: Sums) -> None:
        inputs = [entry for entry in layer.inputs if entry.expert == expert]
        keys = {entry.key for entry in inputs}
        for entry in inputs:
            if entry.key in self._scales:
                fold_input(tensors, entry, self._scales[entry.key])
        for fold in layer.folds:
            if fold.input in keys if isinstance(fold, RowFold) else expert is None:
                self._search_and_fold(layer, fold, expert, tensors, sums)
        self.write_kept(tensors, inputs)
        for entry in inputs:
            gram, scale = _gram(sums, entry.key), self._scales.get(entry.key)
            if scale is not None:
                gram = gram / (scale[:, None] * scale)
            for linear in self.quantized(entry):
                rounded = quantize_awq(matrix(tensors, linear), gram, self.plan.request.grid, self.workers)
                self.write_quantized(tensors, linear, rounded, gram)

    def _search_and_fold(
        self, layer: LayerLinears, fold: NormFold | RowFold, expert: int | None, tensors: Tensors, sums: Sums
    ) -> None:
        weights = self._searched(layer, fold, tensors)
        if not weights:
            return
        if isinstance(fold, RowFold):
            key, ties = fold.input, np.array(fold.rows)
            name = f"the input of {self.quantized(layer.find(key))[0].name}"
        else:
            key, ties, name = fold.inputs[0], None, f"the output of {fold.norm}"
        best = search_nearest_scale(
            weights, _gram(sums, key), self.plan.request.grid, ties=ties, name=name, workers=self.workers
        )
        self._fold(layer, fold, expert, tensors, best.values)


def _fold_of(layer: LayerLinears, entry: Input) -> NormFold | RowFold | None:
    """The fold that gives an input its scale. The norm before the experts is scaled with the rest of the layer."""
    for fold in layer.folds:
        if entry.key == fold.input if isinstance(fold, RowFold) else entry.key in fold.inputs and entry.expert is None:
            return fold
    return None


def quantizer_of(request: FolderRequest) -> type[LayerQuantizer]:
    """The algorithm of a folder."""
    if request.algorithm_used == "gptq":
        return GptqQuantizer
    if request.algorithm_used in ("smoothquant", "nearest"):
        return SmoothQuantizer if request.algorithm_used == "smoothquant" else Float4Quantizer
    return NearestAwqQuantizer if request.rounding == "nearest" else AwqQuantizer


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
