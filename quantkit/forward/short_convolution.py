"""The depthwise convolution of recurrent layers, and LFM2's gated short convolution in place of attention."""

from quantkit.forward.arrays import Array
from quantkit.forward.layer import Layer
from quantkit.forward.recurrent_mixers import ShortConvolution


def convolved(x: Array, layer: Layer, name: str, *, centered: bool = False) -> Array:
    """The depthwise convolution `name` of x (n, channels): its last tap is for the token itself.

    `centered`: its middle tap is; the taps after it are for later tokens.
    """
    taps = layer.vector(name + ".weight", x).reshape(x.shape[1], -1)
    own = taps.shape[1] // 2 if centered else taps.shape[1] - 1
    out: Array = x * taps[:, own]
    for back in range(1, min(own + 1, len(x))):
        out[back:] += x[:-back] * taps[:, own - back]
    for ahead in range(1, min(taps.shape[1] - own, len(x))):
        out[:-ahead] += x[ahead:] * taps[:, own + ahead]
    if layer.weights.has(name + ".bias"):
        out += layer.vector(name + ".bias", x)
    return out


def short_convolution(part: ShortConvolution, layer: Layer, x: Array) -> Array:
    """out(c * convolution(b * v)) for the projections b, c and v of the hidden states x (n, hidden): (n, hidden)."""
    name = layer.at + part.at + part.out
    inner = layer.weights.once(name, lambda: _inner(part, layer, x))
    return layer.weights.linear(name, inner, x.shape[1])


def _inner(part: ShortConvolution, layer: Layer, x: Array) -> Array:
    """What the last linear reads, (n, width)."""
    at, width = layer.at + part.at, x.shape[1]
    projected = layer.weights.linear(at + part.projection, x, 3 * width)
    before, after, values = (projected[:, i * width : (i + 1) * width] for i in range(3))
    return after * convolved(before * values, layer, at + part.convolution, centered=part.centered)
