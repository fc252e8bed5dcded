"""Manifold-constrained hyper-connections (mHC, arXiv 2512.24880), as DeepSeek-V4 has them: several residual streams.

Streams stand side by side: x is (n, streams * hidden). A part of a layer reads one mixture of the streams. Its output
is added to all of them, and the streams are mixed among themselves by a matrix whose rows and columns sum to one. All
coefficients come from the streams of the token, through a linear and a few steps of Sinkhorn and Knopp's algorithm.
llama.cpp: build_hc_pre, build_hc_sinkhorn and build_hc_post in src/models/deepseek4.cpp. Hunyuan 4's independent
hyper-connections do not mix the streams (src/models/hy-v4.cpp).
"""

from dataclasses import dataclass

from quantkit.forward.arithmetic import normalise, sigmoid, softmax
from quantkit.forward.arrays import Array, namespace
from quantkit.forward.description import HyperConnections
from quantkit.forward.layer import Layer
from quantkit.forward.parts import Form, Norm
from quantkit.forward.weights import f32

STORED = Form(weight="_fn", bias="_bias")
"""How the linear of the coefficients is stored."""
_NORM = Norm(weighted=False)


@dataclass(frozen=True)
class Connection:
    """The streams around one part of a layer.

    Attributes:
        streams: (n, streams, hidden), before the part.
        read: what the part reads, (n, hidden).
        added: how much of the part's output each stream gets, (n, streams).
        mixed: how much of each stream (first axis) each stream gets, (n, streams, streams); None if each keeps its own.
    """

    streams: Array
    read: Array
    added: Array
    mixed: Array | None

    def after(self, out: Array) -> Array:
        """The streams after the part, whose output is `out` (n, hidden): (n, streams * hidden)."""
        xp = namespace(out)
        mixed = self.streams if self.mixed is None else xp.einsum("nij,nih->njh", self.mixed, self.streams)
        return f32((mixed + self.added[:, :, None] * out[:, None, :]).reshape(len(out), -1))


def connect(part: HyperConnections, layer: Layer, name: str, x: Array) -> Connection:
    """The streams x (n, streams * hidden) before the part of a layer whose coefficients are in tensors `name`."""
    count, eps = part.count(layer.config), part.eps(layer.config)
    n_out = part.coefficients(layer.config)
    values = _coefficients(layer, layer.at + name, x, n_out)
    scale, base = layer.vector(f"{layer.at}{name}_scale", x), layer.vector(f"{layer.at}{name}_base", x)
    read, added, mixed = (
        values[:, start:stop] * scale[number : number + 1] + base[start:stop]
        for number, (start, stop) in enumerate(((0, count), (count, 2 * count), (2 * count, n_out)))
    )
    streams, share = x.reshape(len(x), count, -1), part.magnitude(layer.config) * sigmoid(added)
    read = _collapsed(streams, sigmoid(read) + eps)
    if not part.mixed:
        return Connection(streams, read, share + eps, None)
    return Connection(
        streams,
        read,
        share,
        _balanced(softmax(mixed.reshape(len(x), count, count)) + eps, part.iterations(layer.config), eps),
    )


def joined(part: HyperConnections, layer: Layer, name: str, x: Array) -> Array:
    """The streams x (n, streams * hidden) after the last layer as one, (n, hidden)."""
    count = part.count(layer.config)
    values = _coefficients(layer, name, x, count)
    share = sigmoid(values * layer.vector(f"{name}_scale", x) + layer.vector(f"{name}_base", x))
    return _collapsed(x.reshape(len(x), count, -1), share + part.eps(layer.config))


def _coefficients(layer: Layer, name: str, x: Array, n_out: int) -> Array:
    return layer.weights.linear(name, normalise(x, None, None, _NORM, layer.eps), n_out, STORED)


def _collapsed(streams: Array, share: Array) -> Array:
    return f32(namespace(streams).einsum("ni,nih->nh", share, streams))


def _balanced(x: Array, iterations: int, eps: float) -> Array:
    """Sinkhorn and Knopp: columns and rows of x (n, streams, streams) divided by their sums in turn."""
    x = x / (x.sum(axis=-2, keepdims=True) + eps)
    for _ in range(iterations - 1):
        x = x / (x.sum(axis=-1, keepdims=True) + eps)
        x = x / (x.sum(axis=-2, keepdims=True) + eps)
    return x
