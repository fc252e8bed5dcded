"""Attention over earlier hidden states in place of the residual (Kimi K3).

The first layer of each block stores its input and begins a new sum with the output of its attention. Attention, the
feed-forward and the head read a mixture of the stored states and the sum h, with weights from a softmax of

    s_i = w . x_i / rms(x_i)        over all stored x_i and h.

Between layers, h and the stored states stand side by side: x is (n, states * hidden), h first.
"""

from quantkit.forward.arithmetic import softmax
from quantkit.forward.arrays import Array, namespace
from quantkit.forward.kimi_parts import ResidualAttention
from quantkit.forward.layer import Layer
from quantkit.forward.parts import Norm
from quantkit.forward.weights import f32

_UNWEIGHTED = Norm(weighted=False)


def with_room(x: Array, width: int) -> Array:
    """x (n, m) followed by zeros: (n, width)."""
    xp = namespace(x)
    if x.shape[1] == width:
        return x
    zeros = xp.zeros_like(x[:, :1])
    out: Array = xp.concatenate([x, xp.broadcast_to(zeros, (len(x), width - x.shape[1]))], axis=1)
    return out


def mixed(layer: Layer, at: str, names: tuple[str, str], x: Array, stored: int) -> Array:
    """What a part reads: a mixture of the first `stored` states of x and its sum, (n, hidden).

    `names`, below `at`, are those of the norm and of the row that score the states.
    """
    hidden = int(layer.config["hidden_size"])
    if not stored:
        return x[:, :hidden]
    xp, n = namespace(x), len(x)
    states = x[:, : (stored + 1) * hidden].reshape(n, stored + 1, hidden)
    w = layer.vector(f"{at}{names[0]}.weight", x) * layer.vector(f"{at}{names[1]}.weight", x)
    shares = softmax(layer.norm("", states, _UNWEIGHTED) @ w)
    out: Array = xp.einsum("ni,nih->nh", shares, states)
    return out


def stored_or_added(part: ResidualAttention, layer: Layer, x: Array, attended: Array) -> Array:
    """x after attention: its sum with the output of attention (n, hidden), or a stored state and a new sum."""
    xp, hidden = namespace(x), attended.shape[1]
    if layer.number % part.block(layer.config):
        return added(x, attended)
    at = (part.states(layer.config, layer.number) + 1) * hidden
    out: Array = xp.concatenate([attended, x[:, hidden:at], x[:, :hidden], x[:, at + hidden :]], axis=1)
    return f32(out)


def added(x: Array, out: Array) -> Array:
    """x with `out` (n, hidden) added to its sum."""
    hidden = out.shape[1]
    total: Array = namespace(x).concatenate([x[:, :hidden] + out, x[:, hidden:]], axis=1)
    return f32(total)
