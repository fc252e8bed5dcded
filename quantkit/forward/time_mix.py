"""RWKV's two parts of a layer, token by token: Finch (arXiv 2404.05892) and Goose (arXiv 2503.14456).

Each linear reads a mixture of a token x_t and the one before it:  x_t + (x_{t-1} - x_t) * m. A head has a state S, with
a row for each element of a key in Finch, and a column in Goose.

    Finch:  y_t = r_t' (diag(u) k_t v_t' + S_{t-1})      S_t = diag(w_t) S_{t-1} + k_t v_t'
    Goose:  S_t = S_{t-1} (diag(w_t) - c_t (c_t * a_t)') + v_t k_t'      y_t = S_t r_t
"""

import math

from quantkit.forward.arithmetic import activation, normalise, sigmoid
from quantkit.forward.arrays import Array, empty, namespace
from quantkit.forward.layer import Context, Layer
from quantkit.forward.parts import Form, Norm
from quantkit.forward.recurrent_mixers import ChannelMix, Goose, TimeMix

_GROUP_NORM_EPS = 64e-5
_UNIT_EPS = 1e-12
BARE = Form(weight="", turned=True)
"""A matrix that is stored as a parameter, (in, out)."""


def time_mix(part: TimeMix, layer: Layer, x: Array, context: Context) -> Array:
    """The time mixing over the hidden states x (n, hidden), in place of attention: (n, hidden)."""
    name = layer.at + part.at + part.out
    return layer.weights.linear(name, layer.weights.once(name, lambda: _gated(part, layer, x, context)), x.shape[1])


def _gated(part: TimeMix, layer: Layer, x: Array, context: Context) -> Array:
    """What the last linear of the time mixing reads, (n, hidden)."""
    mixed, gate = _goose(part.goose, part, layer, x, context) if part.goose else _finch(part, layer, x)
    return mixed * gate


def channel_mix(part: ChannelMix, layer: Layer, x: Array) -> Array:
    """The channel mixing over the hidden states x (n, hidden), in place of the feed-forward: (n, hidden)."""
    at, hidden, before = layer.at + part.at, x.shape[1], _before(x)

    def of_keys() -> Array:
        keys = x + before * layer.vector(at + part.key_mix, x)
        return activation("relu2")(layer.weights.linear(at + part.key, keys, part.inner(layer.config)))

    inner = layer.weights.once(at + part.value, of_keys)
    out = layer.weights.linear(at + part.value, inner, hidden)
    if part.receptance is None:
        return out
    name, mix = part.receptance
    return out * sigmoid(layer.weights.linear(at + name, x + before * layer.vector(at + mix, x), hidden))


def _before(x: Array) -> Array:
    """What the token before has more than a token: x_{t-1} - x_t, with zeros before the first."""
    out: Array = -x
    out[1:] += x[:-1]
    return out


def _finch(part: TimeMix, layer: Layer, x: Array) -> tuple[Array, Array]:
    """The normed output of the heads and the gate, both (n, hidden)."""
    at, weights, (n, hidden) = layer.at + part.at, layer.weights, x.shape
    xp, before, width = namespace(x), _before(x), part.width(layer.config)
    rank = part.rank(layer.config)
    low = x + before * layer.vector(at + "time_maa_x", x)
    low = xp.tanh(weights.linear(at + "time_maa_w1", low, 5 * rank, BARE))
    inputs = {}
    for number, name in enumerate("wkvrg"):
        own = weights.linear(at + "time_maa_w2", low[:, number * rank : (number + 1) * rank], hidden, BARE, number)
        inputs[name] = x + before * (own + layer.vector(at + f"time_maa_{name}", x))
    receptances, keys, values, gate = (
        weights.linear(at + name, inputs[letter], hidden) for name, letter in zip(part.separate, "rkvg", strict=True)
    )
    decay_rank = part.decay_rank(layer.config)
    steps = xp.tanh(weights.linear(at + "time_decay_w1", inputs["w"], decay_rank, BARE))
    steps = weights.linear(at + "time_decay_w2", steps, hidden, BARE) + layer.vector(at + "time_decay", x)
    decays = xp.exp(-xp.exp(steps))
    bonus = layer.vector(at + "time_faaaa", x).reshape(-1, width, 1)

    heads = (n, hidden // width, width)
    receptances, keys, values, decays = (y.reshape(heads) for y in (receptances, keys, values, decays))
    state, out = _zeros((heads[1], width, width), x), empty(heads, x)
    for token in range(n):
        written = keys[token][:, :, None] * values[token][:, None, :]
        out[token] = (receptances[token][:, None, :] @ (state + bonus * written))[:, 0]
        state = decays[token][:, :, None] * state + written
    return _normed(part, layer, out), activation("silu")(gate)


def _goose(goose: Goose, part: TimeMix, layer: Layer, x: Array, context: Context) -> tuple[Array, Array]:
    """The normed output of the heads with what a token gives itself, and the gate, both (n, hidden)."""
    at, weights, (n, hidden) = layer.at + part.at, layer.weights, x.shape
    xp, before, width = namespace(x), _before(x), part.width(layer.config)
    inputs = {name: x + before * _mix(layer, at, name, x) for name in "rwkvag"}
    receptances, keys, values = (
        weights.linear(at + name, inputs[letter], hidden) for name, letter in zip(part.separate, "rkv", strict=True)
    )

    def low_rank(name: str, function: str | None = None) -> Array:
        down, up, form = low_rank_names(at, name, stored=weights.has(f"{at}{name}1"))
        short = weights.linear(down, inputs[name], goose.rank(layer.config, name), form)
        short = xp.tanh(short) if function == "tanh" else sigmoid(short) if function else short
        long = weights.linear(up, short, hidden, form)
        return long + layer.vector(f"{at}{name}0", x) if weights.has(f"{at}{name}0") else long

    decays = xp.exp(-math.exp(-0.5) * sigmoid(low_rank("w", "tanh")))
    rates, gate = sigmoid(low_rank("a")), low_rank("g", "sigmoid")
    heads = (n, hidden // width, width)
    if layer.number == 0:
        by_head = values.reshape(heads).swapaxes(0, 1)
        context.shared[0] = (by_head, by_head)
    else:
        first = context.shared[0][1].swapaxes(0, 1).reshape(n, hidden)
        values = values + (first - values) * sigmoid(low_rank("v"))
    removed = (keys * layer.vector(at + "k_k", x)).reshape(heads)
    lengths = xp.sqrt(xp.einsum("nhi,nhi->nh", removed, removed))[..., None]
    removed = removed / xp.clip(lengths, _UNIT_EPS, None)
    keys = keys * (1.0 + (rates - 1.0) * layer.vector(at + "k_a", x))

    receptances, keys, values, decays, rates = (y.reshape(heads) for y in (receptances, keys, values, decays, rates))
    state, out = _zeros((heads[1], width, width), x), empty(heads, x)
    for token in range(n):
        gone = state @ removed[token][:, :, None]
        state = state * decays[token][:, None, :] - gone * (removed[token] * rates[token])[:, None, :]
        state = state + values[token][:, :, None] * keys[token][:, None, :]
        out[token] = (state @ receptances[token][:, :, None])[:, :, 0]
    own = layer.vector(at + "r_k", x).reshape(heads[1], width)
    given = xp.einsum("nhi,nhi->nh", receptances * keys, xp.broadcast_to(own, heads))[..., None] * values
    return _normed(part, layer, out) + given.reshape(n, hidden), gate


def low_rank_names(at: str, name: str, *, stored: bool) -> tuple[str, str, Form]:
    """The two linears of a low-rank part, and how they are `stored` as parameters or else as linears."""
    if stored:
        return f"{at}{name}1", f"{at}{name}2", BARE
    return f"{at}{name}_lora.lora.0", f"{at}{name}_lora.lora.2", Form()


def _mix(layer: Layer, at: str, name: str, x: Array) -> Array:
    """How much of the token before the mixture `name` takes: a tensor of its own, or a row of one for all."""
    if layer.weights.has(at + "x_x"):
        mixes = layer.vector(at + "x_x", x).reshape(6, -1)
        row: Array = mixes["rwkvag".index(name)]
        return row
    mix: Array = layer.vector(at + f"x_{name}", x)
    return mix


def _normed(part: TimeMix, layer: Layer, out: Array) -> Array:
    """The output of the heads (n, heads, width), each normed over its width, with weight and bias: (n, hidden)."""
    name, flat = layer.at + part.at + part.norm, (len(out), -1)
    normed = normalise(out, None, None, Norm("layer"), _GROUP_NORM_EPS).reshape(flat)
    weighted: Array = normed * layer.vector(name + ".weight", out) + layer.vector(name + ".bias", out)
    return weighted


def _zeros(shape: tuple[int, ...], like: Array) -> Array:
    state = empty(shape, like)
    state[...] = 0.0
    return state
