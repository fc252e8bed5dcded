"""Every quantizer on one layer at a time: GPTQ, error feedback onto other points, and those of awq_layers.py."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quantkit.conversion.awq_layers import AwqQuantizer, NearestAwqQuantizer, SmoothQuantizer
from quantkit.conversion.layer_quantizer import Array, LayerQuantizer, Sums, Tensors
from quantkit.conversion.rounded_inputs import Received
from quantkit.forward.linears import Input, LayerLinears, Linear
from quantkit.packed.formats import FolderRequest, Packed, PointsFormat
from quantkit.packed.registry import FORMATS
from quantkit.quant.asymmetric import Aim
from quantkit.quant.factor import Factor
from quantkit.quant.fold import matrix
from quantkit.quant.gptq import ROUNDED_ROWS
from quantkit.workers import parts


class LayerReader(Protocol):
    """What uses the statistics of a layer while they are in memory. `on_device`: it takes those of torch, too."""

    @property
    def on_device(self) -> bool: ...

    def begin(self) -> None:
        """Start a new layer."""

    def quantize(self, layer: LayerLinears, expert: int | None, tensors: Tensors, sums: Sums) -> None:
        """Quantize and write the linears of one routed expert, or with None all others of the layer."""


class GptqQuantizer(LayerQuantizer):
    """GPTQ (arXiv 2210.17323): the linears of one input share its Gram matrix and one factor of it."""

    on_device = True

    def quantize(self, layer: LayerLinears, expert: int | None, tensors: Tensors, sums: Sums) -> None:
        request, inputs = self.plan.request, [entry for entry in layer.inputs if entry.expert == expert]
        tensors = self.begin_part(layer, expert, tensors)
        self.write_kept(tensors, layer)
        for entry in inputs:
            linears = self.quantized(entry)
            if linears:
                weights, received = [matrix(tensors, linear) for linear in linears], self.received(entry, sums)
                factored = self.factor(
                    entry, received.statistics, weights, damp=request.damp, act_order=request.act_order
                )
                self.round(tensors, linears, factored, received, static_groups=request.static_groups)
        self.end_part()


class PointsQuantizer(LayerQuantizer):
    """Rounds to the points of a format that is not a grid of integers and zero points."""

    def quantize(self, layer: LayerLinears, expert: int | None, tensors: Tensors, sums: Sums) -> None:
        folder_format, inputs = self.plan.format, [entry for entry in layer.inputs if entry.expert == expert]
        assert isinstance(folder_format, PointsFormat)
        tensors = self.begin_part(layer, expert, tensors)
        self.write_kept(tensors, layer)
        for entry in inputs:
            linears = self.quantized(entry)
            if linears:
                self._quantize_input(folder_format, linears, tensors, entry, self.received(entry, sums))
        self.end_part()

    def _quantize_input(
        self,
        folder_format: PointsFormat,
        linears: Sequence[Linear],
        tensors: Tensors,
        entry: Input,
        received: Received,
    ) -> None:
        request, statistics = self.plan.request, received.statistics
        assert statistics.maxima is not None and statistics.gram is not None
        weights: Sequence[Array] = [matrix(tensors, linear) for linear in linears]
        shared = folder_format.shared(weights, float(statistics.maxima.max(initial=0)))
        factored, aim = None, Aim(statistics.gram)
        if request.feeds_errors_back:
            factored = self.factor(entry, statistics, weights, damp=request.damp, act_order=request.act_order)
            aim = self.aim(factored, received, linears)

        def packed(weight: Array) -> Packed:
            return {**self._rounded(folder_format, weight, shared, factored), **shared}

        def values_of(weights: Sequence[Array]) -> list[Array]:
            return [folder_format.unpacked(packed(weight), request) for weight in weights]

        for linear, weight in zip(linears, aim.targets(weights, values_of), strict=True):
            stored = packed(weight)
            self.write_packed(tensors, linear, weight, stored, folder_format.unpacked(stored, request), aim.gram)

    def _rounded(
        self, folder_format: PointsFormat, weight: Array, shared: Packed, factored: Factor | None
    ) -> dict[str, NDArray[Any]]:
        """The tensors of a matrix, rounded in batches of rows."""

        def some(rows: slice) -> Packed:
            return folder_format.round(np.ascontiguousarray(weight[rows]), shared, self.plan.request, factored)

        pieces = self.workers.map(some, list(parts(len(weight), ROUNDED_ROWS)))
        return {suffix: np.concatenate([piece[suffix] for piece in pieces]) for suffix in pieces[0]}


def quantizer_of(request: FolderRequest) -> type[LayerQuantizer]:
    """The algorithm of a folder."""
    if isinstance(FORMATS[request.method], PointsFormat):
        return PointsQuantizer
    if request.algorithm_used == "gptq":
        return GptqQuantizer
    if request.algorithm_used == "smoothquant":
        return SmoothQuantizer
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
        fetched: Sums = {}
        for quantizer in self.quantizers:
            if not quantizer.on_device and not fetched:
                fetched = {key: sums.fetched() for key, sums in statistics.items()}
            quantizer.quantize(layer, expert, tensors, statistics if quantizer.on_device else fetched)
        return tensors
