"""Kimi Delta Attention (arXiv 2510.26692): linear attention in chunks of tokens, with a state between chunks.

Keys k and queries q have length one; q is then divided by the square root of the width. For each head, with a vector
g_t of logarithms of decays, one for each channel of the keys:

    S_t = (I - beta_t k_t k_t') diag(exp(g_t)) S_{t-1} + beta_t k_t v_t'        o_t = S_t' q_t

g_t is -exp(A) softplus(f + b), or with a lower bound L it is L sigmoid(exp(A) (f + b)).
"""

from quantkit.forward.arithmetic import activation, sigmoid
from quantkit.forward.arrays import Array, device, empty, namespace
from quantkit.forward.chunks import identity, later, softplus, strictly_lower
from quantkit.forward.delta_net import unit
from quantkit.forward.kimi_parts import KimiDelta
from quantkit.forward.layer import Layer
from quantkit.forward.parts import Norm
from quantkit.forward.short_convolution import convolved

_PLAIN = Norm()
_CHUNK = 16
"""Tokens of a chunk: the decays between them are (_CHUNK, _CHUNK, key width) for each head."""


def kimi_delta(part: KimiDelta, layer: Layer, x: Array) -> Array:
    """Kimi Delta Attention over the hidden states x (n, hidden): (n, hidden)."""
    name = layer.at + part.at + part.out
    inner = layer.weights.once(name, lambda: _inner(part, layer, x))
    return layer.weights.linear(name, inner, x.shape[1])


def _inner(part: KimiDelta, layer: Layer, x: Array) -> Array:
    """What the last linear reads, (n, width)."""
    n, at, weights = len(x), layer.at + part.at, layer.weights
    heads, width = part.heads(layer.config), part.width(layer.config)
    inner = heads * width
    queries, keys, values = (
        activation("silu")(convolved(weights.linear(at + name, x, inner), layer, at + convolution)).reshape(
            n, -1, width
        )
        for name, convolution in zip(part.separate, part.convolutions, strict=True)
    )
    queries, keys = unit(queries, part.eps), unit(keys, part.eps)
    queries *= width**-0.5
    log_decay = _log_decay(part, layer, _through(part.forget, layer, at, x, width, inner))
    beta = sigmoid(weights.linear(at + part.beta, x, heads))
    out = recurrent(queries, keys, values, log_decay, beta)
    out = layer.norm(at + part.norm, out, _PLAIN)
    out *= sigmoid(_through(part.gate, layer, at, x, width, inner)).reshape(out.shape)
    flat: Array = out.reshape(n, -1)
    return flat


def _through(names: tuple[str, ...], layer: Layer, at: str, x: Array, width: int, inner: int) -> Array:
    """x through one linear to (n, inner), or through two with `width` elements between them."""
    for name in names[:-1]:
        x = layer.weights.linear(at + name, x, width)
    return layer.weights.linear(at + names[-1], x, inner)


def _log_decay(part: KimiDelta, layer: Layer, forget: Array) -> Array:
    """The logarithms of the decays, (n, heads, width), from the result (n, heads * width) of their linears."""
    at = layer.at + part.at
    rate = namespace(forget).exp(layer.vector(at + part.decay, forget))[: part.heads(layer.config), None]
    shifted = (forget + layer.vector(at + part.time_bias, forget)).reshape(len(forget), *rate.shape[:1], -1)
    bound = part.bound(layer.config)
    return -rate * softplus(shifted) if bound is None else sigmoid(rate * shifted) * bound


def recurrent(queries: Array, keys: Array, values: Array, log_decay: Array, beta: Array) -> Array:
    """The output (n, heads, width) of queries, keys, values and decays of that shape; `beta` is (n, heads)."""
    n, heads, width = values.shape
    xp, where = namespace(values), device(values)
    state = empty((heads, width, width), values)
    state[...] = 0.0
    out = empty(values.shape, values)
    for start in range(0, n, _CHUNK):
        rows = slice(start, min(start + _CHUNK, n))
        q, k, v, g = (part[rows].swapaxes(0, 1) for part in (queries, keys, values, log_decay))
        b = beta[rows].swapaxes(0, 1)[..., None]
        total = xp.cumsum(g, axis=1)
        since = xp.exp(total)
        # the key of token j as token i sees it, (heads, i, j, width); the mask comes before exp, which could overflow
        masked = total[:, :, None] - total[:, None] + later(q.shape[1], where)[:, :, None]
        decayed = xp.exp(masked) * k[:, None]
        system = (decayed @ (k * b)[..., None])[..., 0] * strictly_lower(q.shape[1], where)
        system += identity(q.shape[1], where)
        written = xp.linalg.solve(system, v * b - (k * b * since) @ state)
        seen = (decayed @ q[..., None])[..., 0]
        out[rows] = ((q * since) @ state + seen @ written).swapaxes(0, 1)
        remaining = xp.exp(total[:, -1:] - total)
        state = state * since[:, -1][..., None] + (k * remaining).swapaxes(1, 2) @ written
    return out
