"""AltUp (Alternating Updates, arXiv 2301.13310): several streams of hidden states, of which a layer computes one.

Streams stand side by side: x is (n, streams * hidden). A layer predicts all streams from all, and runs its parts on the
active one. Then it corrects all streams by the difference between the result and the prediction.
"""

from dataclasses import dataclass

from quantkit.forward.arrays import Array, namespace
from quantkit.forward.description import AltUp
from quantkit.forward.layer import Layer
from quantkit.forward.parts import Norm
from quantkit.forward.weights import Weights, f32

_LEAST = 1e-5


@dataclass(frozen=True)
class Streams:
    """The streams of one layer. `norm` is the architecture's, `hidden` the width of a stream."""

    part: AltUp
    layer: Layer
    norm: Norm
    hidden: int

    @property
    def count(self) -> int:
        """The number of streams."""
        return self.part.count(self.layer.config)

    @property
    def active(self) -> int:
        """The index of the stream that the layer computes."""
        return self.part.active(self.layer.config)

    def predict(self, x: Array) -> Array:
        """What the layer expects all streams to be: (n, streams * hidden)."""
        count, at = self.count, self.layer.at + self.part.at
        modalities = self._modalities(stream(x, self.active, self.hidden))
        coefficients = self.layer.weights.linear(at + self.part.prediction, modalities, count * count)
        streams = x.reshape(len(x), count, self.hidden)
        mixed = namespace(x).einsum("nij,njh->nih", coefficients.reshape(len(x), count, count), streams)
        return f32(x + mixed.reshape(len(x), count * self.hidden))

    def correct(self, predictions: Array, computed: Array) -> Array:
        """All streams after the active one was computed, (n, hidden): (n, streams * hidden)."""
        count, at = self.count, self.layer.at + self.part.at
        coefficients = self.layer.weights.linear(at + self.part.correction, self._modalities(computed), count) + 1.0
        change = computed - stream(predictions, self.active, self.hidden)
        added = coefficients[:, :, None] * change[:, None, :]
        return f32(predictions + added.reshape(len(computed), count * self.hidden))

    def scaled(self, x: Array) -> Array:
        """The active stream of x times a vector of the layer, which gates the layer's input: (n, hidden)."""
        name = self.layer.at + self.part.at + self.part.output_scale
        return stream(x, self.active, self.hidden) * self.layer.vector(name, x)

    def add_to_others(self, x: Array, out: Array) -> Array:
        """x with `out` (n, hidden) added to all streams but the first."""
        first, others = x[:, : self.hidden], x[:, self.hidden :]
        others = others.reshape(len(x), self.count - 1, self.hidden) + out[:, None, :]
        return f32(namespace(x).concatenate([first, others.reshape(len(x), -1)], axis=1))

    def _modalities(self, x: Array) -> Array:
        at = self.layer.at + self.part.at
        normed = self.layer.norm(at + self.part.router_norm, x, self.norm)
        normed *= 1 / self.hidden
        routed: Array = namespace(x).tanh(self.layer.weights.linear(at + self.part.router, normed, self.count))
        return routed


def stream(x: Array, number: int, hidden: int) -> Array:
    """One of the streams of x."""
    return x[:, number * hidden : (number + 1) * hidden]


def spread(part: AltUp, weights: Weights, base: str, x: Array, count: int) -> Array:
    """The streams before the first layer: the embeddings x (n, hidden), and projections of the same magnitude."""
    target = _magnitude(x)
    streams = [x]
    for number in range(count - 1):
        other = weights.linear(f"{base}{part.projection}.{number}", x, x.shape[1])
        streams.append(other * (target / _magnitude(other, least=_LEAST)))
    return f32(namespace(x).concatenate(streams, axis=1))


def merged(part: AltUp, weights: Weights, base: str, x: Array, count: int) -> Array:
    """The mean of the streams after the last layer, each projected to the magnitude of the first: (n, hidden)."""
    hidden = x.shape[1] // count
    first = stream(x, 0, hidden)
    target, total = _magnitude(first), first + 0.0
    for number in range(count - 1):
        other = weights.linear(f"{base}{part.unembedding}.{number}", stream(x, number + 1, hidden), hidden)
        total += other * (target / _magnitude(other, least=_LEAST))
    total *= 1 / count
    return total


def _magnitude(x: Array, least: float = 0.0) -> Array:
    xp = namespace(x)
    squares = xp.einsum("ni,ni->n", x, x) / x.shape[1]
    magnitude: Array = xp.sqrt(xp.clip(squares, least, None))[:, None]
    return magnitude
