"""Layers of GGUF files rounded input by input, each matrix for the inputs that its own file's rounded layers give.

See `quant.asymmetric`. Every file follows a stream of its own, because its types decide what its matrices receive.
A file without types that are rounded with error feedback (F16) has no stream.
"""

from collections.abc import Mapping

import numpy as np

from quantkit.conversion.gguf_layers import FeedbackRounder, RoundedInput
from quantkit.conversion.gguf_matrices import Array
from quantkit.forward.linears import Input, LayerLinears
from quantkit.gguf.blocks import FORMATS
from quantkit.imatrix.names import LinearKey
from quantkit.quant.fold import is_loaded, matrix
from quantkit.stream.rounded import RoundedStream
from quantkit.stream.statistics import Statistics


class AsymmetricRounder(FeedbackRounder):
    """Rounds the inputs of a layer in the order of execution. `streams`: by the label of a file, see `follow`."""

    streams: Mapping[str, RoundedStream]

    def follow(self, streams: Mapping[str, RoundedStream]) -> None:
        """Set the streams: one for each label of `labels`."""
        self.streams = streams

    @property
    def labels(self) -> list[str]:
        """The files with a tensor that is rounded with error feedback."""
        covered = [target for name in self.covered for target in self.targets(name)]
        labels = {target.label for target in covered if target.slot.type in FORMATS}
        return [output.label for output in self.plan.outputs if output.label in labels]

    def quantize(
        self, layer: LayerLinears, expert: int | None, tensors: Mapping[str, Array], sums: Mapping[str, Statistics]
    ) -> None:
        if layer.is_after_experts:
            return
        moves = dict(self.moves(layer, expert, tensors, sums)) if self.plan.request.reorder else {}
        others = {output.label for output in self.plan.outputs}.difference(self.streams)
        for entry in layer.inputs if others else ():
            if entry.expert == expert:
                keys = [(linear.name, linear.index) for linear in entry.linears]
                self.quantize_without_feedback(keys, sums[entry.key], others)
        source = dict(tensors)
        if expert is not None and self.streams:
            source |= next(iter(self.streams.values())).source.of_stacks(layer, expert)
        for label, stream in self.streams.items():
            rounded = {name: np.array(values) for name, values in source.items()}
            routed = None if expert is None else stream.expert(layer.number, expert)
            for entry in layer.inputs:
                keys = [(linear.name, linear.index) for linear in entry.linears]
                if entry.expert != expert or not any(self.reads(key, label) for key in keys):
                    continue
                if routed is None:
                    asymmetric = stream.sums(layer, entry, source, rounded)
                else:
                    asymmetric = stream.expert_sums(routed, entry, source, rounded)
                received = RoundedInput(label, asymmetric, _weights(source, entry), _weights(rounded, entry))
                self.quantize_input(keys, sums[entry.key], moves, received)
            if routed is None:
                stream.advance(layer.number, rounded)
            else:
                stream.advance_expert(routed, rounded)


def _weights(tensors: Mapping[str, Array], entry: Input) -> dict[LinearKey, Array]:
    """Views of the linears' weights (n_out, n_in); without those that are read from the checkpoint."""
    return {
        (linear.name, linear.index): matrix(tensors, linear) for linear in entry.linears if is_loaded(tensors, linear)
    }
