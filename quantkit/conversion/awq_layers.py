"""Quantizers that scale the channels of a layer before they round it: AWQ and SmoothQuant."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.conversion.layer_quantizer import Array, LayerQuantizer, Sums, Tensors
from quantkit.conversion.rounded_inputs import Received
from quantkit.forward.arrays import device, place
from quantkit.forward.linears import Input, LayerLinears, Linear, NormFold, RowFold
from quantkit.quant.awq import search_scale
from quantkit.quant.awq_nearest import quantize_awq
from quantkit.quant.awq_nearest import search_scale as search_nearest_scale
from quantkit.quant.factor import Factor
from quantkit.quant.fold import fold_input, fold_source, matrix
from quantkit.quant.smooth import search_smooth_scale
from quantkit.stream.statistics import Statistics

# The scale of a norm before routed experts is searched on this many experts, with this many rows each.
_SAMPLED_EXPERTS, _SAMPLED_ROWS = 8, 512


class AwqQuantizer(LayerQuantizer):
    """AWQ (arXiv 2306.00978): fold scales into what precedes a linear, clip the ranges, round with error feedback.

    Inputs are visited from the last to the first, since a scale changes the rows of the linear before it. The factor of
    one input serves the search of its scale and the rounding. Only one factor is in memory.
    """

    on_device = True

    def begin(self) -> None:
        super().begin()
        self._scales: dict[str, Array] = {}

    def quantize(self, layer: LayerLinears, expert: int | None, tensors: Tensors, sums: Sums) -> None:
        inputs = [entry for entry in layer.inputs if entry.expert == expert]
        tensors = self.begin_part(layer, expert, tensors)
        for entry in inputs:
            if entry.key in self._scales:  # the norm before the experts, scaled with the rest of the layer
                fold_input(tensors, entry, self._scales[entry.key])
        for entry in reversed(inputs):
            # rounded layers give their inputs in the order of execution, when all scales are known
            linears = self.quantized(entry) if self.follower is None else []
            fold = None if entry.key in self._scales else _fold_of(layer, entry)
            searched = self._searched(layer, fold, tensors) if fold is not None else []
            if not (linears or searched):
                continue
            weights = searched or [matrix(tensors, linear) for linear in linears]
            factored = self.factor(entry, sums[entry.key], weights)
            if fold is not None and searched:
                ties = np.array(fold.rows) if isinstance(fold, RowFold) else None
                self._fold(layer, fold, expert, tensors, self._scale(searched, factored, sums[entry.key], ties))
            if linears:
                self.round(tensors, linears, factored, Received(sums[entry.key]), scale=self._scales.get(entry.key))
        self.write_kept(tensors, layer)
        if self.follower is not None:
            self._round_received(inputs, tensors, sums)

    def _round_received(self, inputs: Sequence[Input], tensors: Tensors, sums: Sums) -> None:
        """Round the linears for the inputs that the folder's rounded layers give."""
        for entry in inputs:
            linears, scale = self.quantized(entry), self._scales.get(entry.key)
            if linears:
                received = self.received(entry, sums, scale)
                weights = [matrix(tensors, linear) for linear in linears]
                unscaled = weights if scale is None else [weight / scale for weight in weights]
                factored = self.factor(entry, received.statistics, unscaled)
                self.round(tensors, linears, factored, received, scale=scale)
        self.end_part()

    def _scale(
        self, weights: Sequence[Array], factored: Factor, statistics: Statistics, ties: NDArray[Any] | None
    ) -> Array:
        """The scale (n_in,) of an input of linears with these weights."""
        placed = [place(weight, device(factored.gram)) for weight in weights]
        workers = self.workers_for(statistics)
        return search_scale(placed, factored, self.plan.request.grid, ties=ties, workers=workers).values

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
        stored = self.read(linear.weight)
        weight = stored.T if linear.form.turned else stored
        return np.array(weight[:: -(-len(weight) // _SAMPLED_ROWS)], np.float32)


class SmoothQuantizer(AwqQuantizer):
    """SmoothQuant (arXiv 2211.10438): scales that make activations easy to round. Weights are rounded as by AWQ."""

    def _scale(
        self, weights: Sequence[Array], factored: Factor, statistics: Statistics, ties: NDArray[Any] | None
    ) -> Array:
        assert statistics.maxima is not None
        return search_smooth_scale(weights, statistics.maxima, np.concatenate(statistics.rows), ties=ties).values


class NearestAwqQuantizer(AwqQuantizer):
    """AWQ as in the paper: scales and ranges searched for rounding to nearest, and that rounding."""

    on_device = False

    def quantize(self, layer: LayerLinears, expert: int | None, tensors: Tensors, sums: Sums) -> None:
        inputs = [entry for entry in layer.inputs if entry.expert == expert]
        keys = {entry.key for entry in inputs}
        for entry in inputs:
            if entry.key in self._scales:
                fold_input(tensors, entry, self._scales[entry.key])
        for fold in layer.folds:
            if fold.input in keys if isinstance(fold, RowFold) else expert is None:
                self._search_and_fold(layer, fold, expert, tensors, sums)
        self.write_kept(tensors, layer)
        for entry in inputs:
            gram, scale = _gram(sums, entry.key), self._scales.get(entry.key)
            if scale is not None:
                gram = gram / (scale[:, None] * scale)
            for linear in self.quantized(entry):
                weight = matrix(tensors, linear)
                rounded = quantize_awq(weight, gram, self.plan.request.grid, self.workers)
                self.write_quantized(tensors, linear, weight, rounded, gram)

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


def _gram(sums: Sums, key: str) -> Array:
    gram = sums[key].gram
    assert gram is not None
    return gram
