"""A layer of a model with its tensors, and the sequence that its parts see."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from quantkit.forward.arithmetic import normalise
from quantkit.forward.arrays import Array, device, place
from quantkit.forward.config_keys import Config
from quantkit.forward.parts import Norm
from quantkit.forward.weights import Weights


@dataclass(frozen=True)
class Layer:
    """A layer of a model; its tensor names begin with `at`."""

    weights: Weights
    config: Config
    number: int
    at: str
    eps: float

    def vector(self, name: str, x: Array) -> Array:
        """The tensor of that name, flat, on the device of x."""
        values: Array = place(self.weights.vector(name), device(x))
        return values

    def norm(self, name: str, x: Array, norm: Norm, eps: float | None = None) -> Array:
        """x after the norm `name` of the layer, with its weight and bias if it has them."""
        bias = name + ".bias"
        if eps is None:
            eps = self.eps if norm.eps is None else norm.eps
        return normalise(
            x,
            self.vector(name + ".weight", x) if norm.weighted else None,
            self.vector(bias, x) if self.weights.has(bias) else None,
            norm,
            eps,
        )


@dataclass(frozen=True)
class Context:
    """A sequence beside its hidden states: its token ids, and what layers leave for later ones.

    `shared`: keys and values (heads, n, head_dim) by the number of the layer that computed them; a layer adds its own
    if its number is in `sources`. `excluded`: by the number of the last layer with an indexer, its choice (see
    `excluded_keys`). `layer_input`: the hidden states (n, hidden) that entered a layer, by the number of the last layer
    whose router reads them.
    """

    tokens: Sequence[int] = ()
    sources: frozenset[int] = frozenset()
    shared: dict[int, tuple[Array, Array]] = field(default_factory=dict)
    excluded: dict[int, Array | None] = field(default_factory=dict)
    layer_input: dict[int, Array] = field(default_factory=dict)
