"""Mamba 2 (arXiv 2405.21060) in chunks of tokens, with a state between chunks (section 6, block decomposition).

Each head has values x, keys B, queries C, time steps d > 0 and a decay rate a < 0:

    H_t = exp(d_t a) H_{t-1} + d_t B_t x_t'        y_t = H_t' C_t + D x_t
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantkit.forward.arithmetic import activation, normalise
from quantkit.forward.arrays import Array, device, namespace, place
from quantkit.forward.chunks import Decays, recurrence, softplus
from quantkit.forward.config_keys import Config
from quantkit.forward.layer import Layer
from quantkit.forward.parts import Norm
from quantkit.forward.recurrent_mixers import Mamba2
from quantkit.forward.short_convolution import convolved

_PLAIN = Norm()


@dataclass(frozen=True)
class Sizes:
    """Counts and widths: heads and the width of a head's values, groups and the width of a group's keys."""

    heads: int
    head_width: int
    groups: int
    state: int

    @property
    def inner(self) -> int:
        """Elements of all heads' values."""
        return self.heads * self.head_width

    @property
    def channels(self) -> int:
        """What the convolution covers: values, keys and queries."""
        return self.inner + 2 * self.groups * self.state

    @property
    def projected(self) -> int:
        """Rows of the input projection: gate, values, keys, queries and time steps."""
        return self.inner + self.channels + self.heads


def sizes_of(part: Mamba2, config: Config) -> Sizes:
    """The sizes that config.json gives."""
    return Sizes(part.heads(config), part.head_width(config), part.groups(config), part.state(config))


def mamba2(part: Mamba2, layer: Layer, x: Array) -> Array:
    """Mamba 2 over the hidden states x (n, hidden): (n, hidden)."""
    name, factors = layer.at + part.at + part.out, _factors(part, layer)
    inner = layer.weights.once(name, lambda: _inner(part, layer, x))
    out = layer.weights.linear(name, inner, x.shape[1])
    return out * np.float32(factors[-1]) if factors else out


def _factors(part: Mamba2, layer: Layer) -> Sequence[float] | None:
    return part.multipliers(layer.config) if part.multipliers else None


def _inner(part: Mamba2, layer: Layer, x: Array) -> Array:
    """What the last linear reads, (n, width)."""
    sizes, n, at = sizes_of(part, layer.config), len(x), layer.at + part.at
    projected = layer.weights.linear(at + part.projection, x, sizes.projected)
    factors = _factors(part, layer)
    if factors:
        projected = projected * place(_by_row(sizes, factors), device(x))
    gate, mixed, steps = (
        projected[:, start:stop]
        for start, stop in (
            (0, sizes.inner),
            (sizes.inner, sizes.inner + sizes.channels),
            (sizes.inner + sizes.channels, sizes.projected),
        )
    )
    mixed = activation("silu")(convolved(mixed, layer, at + part.convolution))
    keys_at = sizes.inner + sizes.groups * sizes.state
    values = mixed[:, : sizes.inner].reshape(n, sizes.heads, sizes.head_width)
    keys = mixed[:, sizes.inner : keys_at].reshape(n, sizes.groups, sizes.state)
    queries = mixed[:, keys_at:].reshape(n, sizes.groups, sizes.state)
    steps = softplus(steps + layer.vector(at + part.time_bias, x))
    rate = -namespace(x).exp(layer.vector(at + part.decay, x))
    out = recurrent(queries, keys, values, steps, rate)
    out += layer.vector(at + part.skip, x)[:, None] * values
    gated = out.reshape(n, sizes.inner) * activation("silu")(gate)
    if part.has_norm(layer.config):
        weight = layer.vector(at + part.norm + ".weight", x).reshape(sizes.groups, -1)
        gated = normalise(gated.reshape(n, sizes.groups, -1), weight, None, _PLAIN, layer.eps).reshape(n, -1)
    return gated


def _by_row(sizes: Sizes, factors: Sequence[float]) -> NDArray[np.float32]:
    """The factor of each row of the input projection."""
    keys = sizes.groups * sizes.state
    counts = (sizes.inner, sizes.inner, keys, keys, sizes.heads)
    return np.repeat(np.array(factors[: len(counts)], np.float32), counts)


def recurrent(queries: Array, keys: Array, values: Array, steps: Array, rate: Array) -> Array:
    """The output (n, heads, head width), without the skip, of queries and keys (n, groups, state width).

    `values` are (n, heads, head width), `steps` (n, heads), `rate` (heads,), negative.
    """

    def write(rows: slice, _keys: Array, _decays: Decays, _state: Array) -> Array:
        return values[rows].swapaxes(0, 1) * steps[rows].swapaxes(0, 1)[..., None]

    return recurrence(queries, keys, values, steps * rate, write)
