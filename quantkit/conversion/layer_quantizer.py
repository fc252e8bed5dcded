"""What the quantizers of a layer share: they quantize its linears, pack them, write them and measure their errors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.conversion.rounded_inputs import Received, RoundedInputs
from quantkit.forward.arrays import device, place
from quantkit.forward.linears import Input, LayerLinears, Linear
from quantkit.machine import release_freed_memory
from quantkit.outputs.packed_folders import FolderPlan
from quantkit.packed.formats import IntegerFormat, Packed
from quantkit.packed.writer import FolderWriter
from quantkit.quant.asymmetric import Aim, factored_correction
from quantkit.quant.factor import SHRINK, Damping, Factor, factor
from quantkit.quant.fold import matrix
from quantkit.quant.gptq import round_with_feedback
from quantkit.quant.grid import Quantized
from quantkit.quant.held_out import HeldOut, Trust, choose_trust, step_sizes
from quantkit.quant.rounding import output_error
from quantkit.stream.statistics import Statistics
from quantkit.workers import SERIAL, Workers

Array = NDArray[np.float32]
Tensors = dict[str, Array]
Sums = Mapping[str, Statistics]

# The output error of a linear is measured on this many rows, evenly spread.
_ERROR_ROWS = 128


@dataclass
class LayerQuantizer:
    """Writes one folder layer by layer. `errors` (by linear) and raised `damping` (by input): of the current layer.

    Its algorithms compute where the Gram matrices are. `on_device`: they take those of a device of torch.

    `read` returns a whole tensor of the checkpoint. `propagate`: the tensors become those that a runtime will use.
    `follower`: gives the inputs of the folder's own rounded layers, for which matrices are then rounded.
    """

    plan: FolderPlan
    writer: FolderWriter
    read: Callable[[str], Array]
    workers: Workers
    propagate: bool = False
    errors: dict[str, float] = field(default_factory=dict)
    damping: dict[str, float] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)
    follower: RoundedInputs | None = None
    on_device = False

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

    @cached_property
    def _quantized_weights(self) -> set[str]:
        return {linear.weight for linear in self.plan.quantized.values()}

    def quantized(self, entry: Input) -> list[Linear]:
        """The linears of an input that are quantized."""
        return [linear for linear in entry.linears if linear.name in self.plan.quantized]

    def begin_part(self, layer: LayerLinears, expert: int | None, tensors: Tensors) -> Tensors:
        """The tensors to quantize: those of the source, or copies that take the values of the file."""
        return tensors if self.follower is None else self.follower.begin(layer, expert, tensors)

    def received(self, entry: Input, sums: Sums, scale: Array | None = None) -> Received:
        """What the linears of an input receive: of the source's layers, or of the folder's, which divide by `scale`."""
        if self.follower is None:
            return Received(sums[entry.key])
        received = self.follower.received(entry, sums, scale)
        return received if self.on_device else received.fetched()

    def end_part(self) -> None:
        """Follow the quantized tensors."""
        if self.follower is not None:
            self.follower.end()

    def factor(
        self,
        entry: Input,
        statistics: Statistics,
        weights: Sequence[Array],
        *,
        damp: float | None = None,
        act_order: bool = True,
    ) -> Factor:
        """The factor of an input's Gram matrix, for rounding `weights`. A damping that had to be raised is recorded.

        damp: None to choose it and the shrinkage on held-out samples.
        """
        name = f"the input of {entry.linears[0].name}"
        assert statistics.gram is not None
        release_freed_memory()  # of the threads that rounded the last input
        trust = Trust(SHRINK, damp) if damp is not None else self._trust(statistics, weights)
        factored = factor(
            statistics.gram,
            statistics.gram_tokens,
            Damping(trust.damp, trust.shrink),
            act_order=act_order,
            name=name,
            workers=self.workers_for(statistics),
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
            HeldOut(statistics.held_out, statistics.held_out_tokens),
            step_sizes(rows, grid.group_size(rows.shape[1])),
            self.workers_for(statistics),
        )

    def workers_for(self, statistics: Statistics) -> Workers:
        """The threads that compute with these statistics: one for a device, which does one thing after another."""
        return self.workers if device(statistics.gram) is None else SERIAL

    def aim(self, factored: Factor, received: Received, linears: Sequence[Linear]) -> Aim:
        """What the linears of an input are rounded to, by the factor of what they receive."""
        gram, cross = received.statistics.gram, received.cross
        assert gram is not None
        if cross is None:
            return Aim(gram)
        n_rows, workers = sum(linear.n_out for linear in linears), self.workers_for(received.statistics)
        return Aim(gram, cross, factored_correction(cross, factored, n_rows, workers))

    def round(
        self,
        tensors: Tensors,
        linears: Sequence[Linear],
        factored: Factor,
        received: Received,
        *,
        static_groups: bool = True,
        scale: Array | None = None,
    ) -> None:
        """Round linears of one input with error feedback and write them.

        factored: of what they receive. scale: by which their columns are multiplied already.
        """
        there, workers = device(factored.gram), self.workers_for(received.statistics)
        aim = self.aim(factored, received, linears)
        if scale is not None:
            factored, aim = factored.scaled(scale), aim.scaled(place(scale, there))

        def rounded(weights: Sequence[Array]) -> list[Quantized]:
            return round_with_feedback(
                weights, factored, self.plan.request.grid, static_groups=static_groups, workers=workers
            )

        def values_of(weights: Sequence[Array]) -> list[Array]:
            return [place(matrix.dequantized(), there) for matrix in rounded(weights)]

        wanted = aim.targets([place(matrix(tensors, linear), there) for linear in linears], values_of, workers)
        quantized = rounded(wanted)
        for linear, weight, values in zip(linears, wanted, quantized, strict=True):
            self.write_quantized(tensors, linear, weight, values, aim.gram)

    def write_quantized(
        self, tensors: Tensors, linear: Linear, wanted: Array, quantized: Quantized, gram: Array
    ) -> None:
        """Write a quantized linear and measure the relative error of its output over the calibration text."""
        folder_format, request = self.plan.format, self.plan.request
        assert isinstance(folder_format, IntegerFormat)
        quantized = folder_format.as_stored(quantized, request)
        packed = folder_format.pack(quantized, request)
        self.write_packed(tensors, linear, wanted, packed, quantized.dequantized(), gram)

    def write_packed(
        self, tensors: Tensors, linear: Linear, wanted: Array, packed: Packed, rounded: Array, gram: Array
    ) -> None:
        """Write the tensors of a linear; `rounded`: what they mean, for the error of its outputs beside `wanted`'s."""
        rows = slice(None, None, -(-len(wanted) // _ERROR_ROWS))
        there = device(gram)
        self.errors[linear.name] = output_error(place(wanted[rows], there), place(rounded[rows], there), gram)[1]
        for suffix, values in packed.items():
            self._write(self.plan.tensor(linear.name, suffix), values)
        if self.propagate or self.follower is not None:
            matrix(tensors, linear)[:] = rounded

    def write_kept(self, tensors: Tensors, layer: LayerLinears) -> None:
        """Write every tensor of a part of a layer except the weights of quantized linears."""
        if layer.is_after_experts:
            return  # written with the part before the experts
        for name, values in tensors.items():
            if name not in self._quantized_weights:
                self._write(name, values)
                if self.follower is not None:
                    values[:] = self.writer.as_stored(name, values)

    def _write(self, name: str, values: NDArray[Any]) -> None:
        self.writer.write(name, values)
        self.written.append(name)
