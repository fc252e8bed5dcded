"""Mamba (arXiv 2312.00752), token by token.

Each channel has a value x, keys B, queries C, a time step d > 0 and decay rates a < 0:

    h_t = exp(d_t a) h_{t-1} + d_t x_t B_t        y_t = h_t' C_t + D x_t
"""

from quantkit.forward.arithmetic import activation
from quantkit.forward.arrays import Array, empty, namespace
from quantkit.forward.chunks import softplus
from quantkit.forward.layer import Layer
from quantkit.forward.recurrent_mixers import Mamba
from quantkit.forward.short_convolution import convolved

_STEP_ELEMENTS = 1 << 22
"""Elements of the decays that are computed at once."""


def mamba(part: Mamba, layer: Layer, x: Array) -> Array:
    """Mamba over the hidden states x (n, hidden): (n, hidden)."""
    name = layer.at + part.at + part.out
    inner = layer.weights.once(name, lambda: _inner(part, layer, x))
    return layer.weights.linear(name, inner, x.shape[1])


def _inner(part: Mamba, layer: Layer, x: Array) -> Array:
    """What the last linear reads, (n, width)."""
    config, weights, at = layer.config, layer.weights, layer.at + part.at
    inner, state, rank = part.inner(config), part.state(config), part.rank(config)
    projected = weights.linear(at + part.projection, x, 2 * inner)
    values = activation("silu")(convolved(projected[:, :inner], layer, at + part.convolution))
    selected = weights.linear(at + part.selection, values, rank + 2 * state)
    short, keys, queries = selected[:, :rank], selected[:, rank : rank + state], selected[:, rank + state :]
    if part.norms:
        eps = part.norm_eps(config)
        short, keys, queries = (
            layer.norm(at + name, states, part.norm, eps)
            for name, states in zip(part.norms, (short, keys, queries), strict=True)
        )
    steps = softplus(weights.linear(at + part.steps, short, inner))
    rates = -namespace(x).exp(layer.vector(at + part.decay, x)).reshape(inner, state)
    out = recurrent(queries, keys, values, steps, rates)
    out += layer.vector(at + part.skip, x) * values
    return out * activation("silu")(projected[:, inner:])


def recurrent(queries: Array, keys: Array, values: Array, steps: Array, rates: Array) -> Array:
    """The output (n, channels), without the skip, of queries and keys (n, state).

    `values` and `steps` are (n, channels), `rates` (channels, state), negative.
    """
    n, inner = values.shape
    xp = namespace(values)
    states = empty(rates.shape, values)
    states[...] = 0.0
    out = empty((n, inner), values)
    at_once = max(1, int(_STEP_ELEMENTS // (inner * rates.shape[1])))
    for start in range(0, n, at_once):
        rows = slice(start, min(start + at_once, n))
        decays = xp.exp(steps[rows, :, None] * rates)
        written = (steps[rows] * values[rows])[..., None] * keys[rows, None, :]
        for token in range(rows.stop - start):
            states = states * decays[token] + written[token]
            out[start + token] = states @ queries[start + token]
    return out
