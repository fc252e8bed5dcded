"""What receives the layers of a stream."""

from collections.abc import Mapping
from typing import Protocol

from quantkit.forward.arrays import Array
from quantkit.forward.linears import LayerLinears
from quantkit.stream.statistics import Statistics

Tensors = dict[str, Array]


class Watcher(Protocol):
    """Receives the tensors and statistics of each layer. It may change the tensors: the forward does not use them
    again.

    It returns the same tensors as a runtime will see them. A stream with `propagate` continues with these.
    """

    def dense(self, layer: LayerLinears, tensors: Tensors, statistics: Mapping[str, Statistics]) -> Tensors:
        """Receive the layer without its routed experts."""

    def expert(
        self, layer: LayerLinears, expert: int, tensors: Tensors, statistics: Mapping[str, Statistics]
    ) -> Tensors:
        """Receive one routed expert of the layer, after `dense`."""
