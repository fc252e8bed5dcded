"""What the rounded layers of a folder give to its own matrices, beside what the source's layers give to them.

See `quant.asymmetric`. Each folder follows a stream of its own, because its rounding decides what its matrices receive.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from quantkit.forward.arrays import Array, device, place
from quantkit.forward.linears import Input, LayerLinears
from quantkit.quant.cross import Cross
from quantkit.stream.rounded import RoundedStream
from quantkit.stream.routing import RoutedExpert
from quantkit.stream.statistics import Statistics
from quantkit.stream.watcher import Tensors


@dataclass(frozen=True)
class Received:
    """What the linears of an input receive: `statistics` of x~, in the units of the source's x.

    `cross`: D, the sum of (x - x~) x~'; None if they receive the source's inputs.
    """

    statistics: Statistics
    cross: Cross | None = None

    def fetched(self) -> "Received":
        """The same with arrays of numpy."""
        return Received(self.statistics.fetched(), None if self.cross is None else self.cross.fetched())


class RoundedInputs:
    """The inputs of a part of a layer: of one routed expert, or of all else. `stream`: of the folder's own layers."""

    def __init__(self, stream: RoundedStream) -> None:
        self.stream = stream

    def begin(self, layer: LayerLinears, expert: int | None, tensors: Tensors) -> Tensors:
        """Start a part of a layer: copies of its tensors, which take the values of the file one after another."""
        self._layer, self._source = layer, tensors
        self._rounded = {name: np.array(values) for name, values in tensors.items()}
        self._expert: RoutedExpert | None = None
        # what the linear back from a latent reads is known when the rounded stream has left the layer
        self._is_late = layer.is_after_experts
        if expert is not None:
            self._expert = self.stream.expert(layer.number, expert)
        return self._rounded

    def received(self, entry: Input, sums: Mapping[str, Statistics], scale: Array | None) -> Received:
        """An input of this part. `scale` (width,): the folder's layers give x~ / scale, by the folded norm or linear.

        sums: of the source's inputs.
        """
        if self._is_late:
            return Received(sums[entry.key])
        if self._expert is None:
            own = self.stream.sums(self._layer, entry, self._source, self._rounded)
        else:
            own = self.stream.expert_sums(self._expert, entry, self._source, self._rounded)
        if scale is None:
            return Received(own.statistics, own.cross)
        gram, held_out, cross = own.statistics.gram, own.statistics.held_out, own.cross.whole()
        assert gram is not None and held_out is not None
        columns = place(scale, device(gram))
        # with y = x~ / s, the stream gives the sums of y y' and of (x - y) y'
        cross = (cross + gram) * columns
        gram, held_out = (values * columns * columns[:, None] for values in (gram, held_out))
        return Received(replace(own.statistics, gram=gram, held_out=held_out), Cross(cross - gram))

    def end(self) -> None:
        """Run the samples through the part as it is rounded."""
        if self._is_late:
            return
        if self._expert is None:
            self.stream.advance(self._layer.number, self._rounded)
        else:
            self.stream.advance_expert(self._expert, self._rounded)
