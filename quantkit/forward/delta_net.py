"""Gated DeltaNet (arXiv 2412.06464): linear attention in chunks of tokens, with a state between chunks.

Keys k and queries q have length one; q is then divided by the square root of the width. For each value head:

    S_t = exp(g_t) S_{t-1} (I - beta_t k_t k_t') + beta_t v_t k_t'        o_t = S_t q_t

Within a chunk the updates are one triangular system (the UT transform of arXiv 2406.06484, section 3).
"""

from dataclasses import dataclass
from itertools import pairwise

from quantkit.forward.arithmetic import activation, sigmoid
from quantkit.forward.arrays import Array, device, namespace
from quantkit.forward.chunks import Decays, identity, recurrence, softplus, strictly_lower
from quantkit.forward.config_keys import Config
from quantkit.forward.layer import Layer
from quantkit.forward.parts import Norm
from quantkit.forward.recurrent_mixers import DeltaNet
from quantkit.forward.short_convolution import convolved

_PLAIN = Norm()


@dataclass(frozen=True)
class Sizes:
    """Counts and widths of heads. `keys` and `values` are the widths of all heads together."""

    key_heads: int
    value_heads: int
    key_width: int
    value_width: int

    @property
    def keys(self) -> int:
        """Width of all keys."""
        return self.key_heads * self.key_width

    @property
    def values(self) -> int:
        """Width of all values."""
        return self.value_heads * self.value_width

    @property
    def channels(self) -> int:
        """What the convolution covers: queries, keys and values."""
        return 2 * self.keys + self.values


def sizes_of(part: DeltaNet, config: Config) -> Sizes:
    """The sizes that config.json gives."""
    return Sizes(part.key_heads(config), part.value_heads(config), part.key_width(config), part.value_width(config))


def delta_net(part: DeltaNet, layer: Layer, x: Array) -> Array:
    """Gated DeltaNet over the hidden states x (n, hidden): (n, hidden)."""
    name = layer.at + part.at + part.out
    inner = layer.weights.once(name, lambda: _inner(part, layer, x))
    return layer.weights.linear(name, inner, x.shape[1])


def _inner(part: DeltaNet, layer: Layer, x: Array) -> Array:
    """What the last linear reads, (n, width)."""
    xp, sizes, n = namespace(x), sizes_of(part, layer.config), len(x)
    at = layer.at + part.at
    mixed, gate, beta, decay = _projected(part, layer, x, sizes)
    mixed = activation("silu")(convolved(mixed, layer, at + part.convolution))
    queries, keys, values = (
        part_of.reshape(n, -1, width)
        for part_of, width in (
            (mixed[:, : sizes.keys], sizes.key_width),
            (mixed[:, sizes.keys : 2 * sizes.keys], sizes.key_width),
            (mixed[:, 2 * sizes.keys :], sizes.value_width),
        )
    )
    queries, keys = unit(queries, part.eps), unit(keys, part.eps)
    queries *= sizes.key_width**-0.5
    log_decay = -xp.exp(layer.vector(at + part.decay, x)) * softplus(decay + layer.vector(at + part.time_bias, x))
    out = _recurrent(queries, keys, values, log_decay, sigmoid(beta))
    out = layer.norm(at + part.norm, out, _PLAIN)
    out *= activation("silu")(gate.reshape(out.shape))
    flat: Array = out.reshape(n, -1)
    return flat


def _projected(part: DeltaNet, layer: Layer, x: Array, sizes: Sizes) -> tuple[Array, Array, Array, Array]:
    """Queries, keys and values (n, channels), the gate (n, values), beta and the decay (n, value heads)."""
    at, weights = layer.at + part.at, layer.weights
    if part.fused is None:
        counts = (sizes.channels, sizes.values, sizes.value_heads, sizes.value_heads)
        mixed, gate, beta, decay = (
            weights.linear(at + name, x, count) for name, count in zip(part.separate, counts, strict=True)
        )
        return mixed, gate, beta, decay
    n, groups, width = len(x), sizes.key_heads, sizes.key_width
    shared_by = sizes.value_heads // groups
    grouped = weights.linear(at + part.fused[0], x, sizes.channels + sizes.values).reshape(n, groups, -1)
    ends = [0, width, 2 * width, 2 * width + shared_by * sizes.value_width, grouped.shape[-1]]
    q, k, v, gate = (grouped[..., start:stop].reshape(n, -1) for start, stop in pairwise(ends))
    pairs = weights.linear(at + part.fused[1], x, 2 * sizes.value_heads).reshape(n, groups, 2 * shared_by)
    mixed = namespace(x).concatenate([q, k, v], axis=-1)
    return mixed, gate, pairs[..., :shared_by].reshape(n, -1), pairs[..., shared_by:].reshape(n, -1)


def unit(x: Array, eps: float) -> Array:
    """x with vectors of length one along its last axis; `eps` is added to their sum of squares."""
    xp = namespace(x)
    squares = xp.einsum("...i,...i->...", x, x)
    out: Array = x * (1.0 / xp.sqrt(squares + eps))[..., None]
    return out


def _recurrent(queries: Array, keys: Array, values: Array, log_decay: Array, beta: Array) -> Array:
    """The output (n, value heads, value width) of queries and keys (n, key heads, key width) and the values.

    `log_decay` and `beta` are (n, value heads). Consecutive value heads share a key head.
    """
    xp, where = namespace(values), device(values)

    def write(rows: slice, k: Array, decays: Decays, state: Array) -> Array:
        v, b = values[rows].swapaxes(0, 1), beta[rows].swapaxes(0, 1)[..., None]
        system = (k * b) @ k.swapaxes(1, 2) * decays.between
        system = system * strictly_lower(k.shape[1], where) + identity(k.shape[1], where)
        written: Array = xp.linalg.solve(system, v * b - (k * b * decays.since) @ state)
        return written

    return recurrence(queries, keys, values, log_decay, write)
