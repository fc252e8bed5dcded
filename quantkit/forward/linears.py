"""The linears of a layer as data: which share an input, and which preceding norm or linear can absorb a scale."""

from collections.abc import Collection
from dataclasses import dataclass

from quantkit.forward.parts import Form

PLAIN = Form()
AFTER_EXPERTS = "experts.up"
DOWN, SHARED_DOWN = "feed.down", "shared.down"


def alone(weight: str, index: int) -> str:
    """The name under which a matrix is held alone, that the tensor `weight` stacks; no checkpoint has such a name."""
    return f"{weight}[{index}]"


@dataclass(frozen=True)
class Linear:
    """A matrix of the checkpoint (native names): `name` + form.weight, (n_out, n_in), or transposed (n_in, n_out).

    `index`: the matrix of that number in a tensor that stacks several (experts of fused checkpoints), else None.
    `kept`: never quantized (a router, a shared expert's gate, the decay of linear attention).
    """

    name: str
    n_in: int
    n_out: int
    form: Form = PLAIN
    index: int | None = None
    kept: bool = False

    @property
    def weight(self) -> str:
        """The tensor with its weight, which may stack several."""
        return self.name + self.form.weight

    @property
    def alone(self) -> str:
        """The name under which a matrix of a stack is held alone, (n_out, n_in)."""
        return alone(self.weight, self.index or 0)


@dataclass(frozen=True)
class Input:
    """One distinct input of linears. `key` is unique within its layer; `expert`: the input has only its tokens.

    Keys: `attention`, `attention.out`, `feed`, `feed.down`, `expert.E`, `expert.E.down`, `shared.down`, and for latent
    attention `attention.q`, `attention.kv`. A router and a shared expert's gate and up read `feed`. In parallel layers
    of one norm the feed-forward's linears belong to `attention`. With experts beside the feed-forward, and where a
    router reads what enters the layer, it reads `router`. Mamba beside attention has `mamba.out`, Mamba 1 has
    `mamba.selection` and `mamba.steps`; RWKV has one for each linear. DeepSeek-V4 has `attention.group.G` for the
    linear of each group of heads, and `streams.attention` and `streams.feed` for the coefficients of its streams.
    Per-layer embeddings have `layer_input` and `layer_input.out`.
    The linear back from a latent of routed experts reads `AFTER_EXPERTS`, known when all experts have run.
    """

    key: str
    linears: tuple[Linear, ...]
    expert: int | None = None

    @property
    def width(self) -> int:
        """Width of the input."""
        return self.linears[0].n_in


@dataclass(frozen=True)
class NormFold:
    """A norm that feeds all of `inputs`: divide its weight (and bias) by s, multiply the inputs' linears by s.

    `offset` is what the architecture adds to the norm's weight; the stored weight becomes (w + offset) / s - offset.
    """

    norm: str
    offset: float
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class RowFold:
    """Output rows of a linear that become an input, through an elementwise product or attention.

    Output row `rows[i]` of `linear` makes input channel i of `input`. Several channels may share a row, as with grouped
    queries; these share a scale. Divide these rows of weight and bias by s, multiply the input's linears by s.
    """

    linear: Linear
    rows: tuple[int, ...]
    input: str


@dataclass(frozen=True)
class LayerLinears:
    """All linears of a layer in execution order: expert E's input, then its down, then expert E+1."""

    number: int
    inputs: tuple[Input, ...]
    folds: tuple[NormFold | RowFold, ...]

    @property
    def is_after_experts(self) -> bool:
        """Whether this is the part of a layer that is known when all of its experts have run."""
        return bool(self.inputs) and all(entry.key == AFTER_EXPERTS for entry in self.inputs)

    def without(self, inputs: Collection[Input]) -> "LayerLinears":
        """The layer without some inputs and the folds for them."""
        keys = {entry.key for entry in inputs}
        folds = [
            fold for fold in self.folds if keys.isdisjoint(fold.inputs if isinstance(fold, NormFold) else (fold.input,))
        ]
        left = tuple(entry for entry in self.inputs if entry.key not in keys)
        return LayerLinears(self.number, left, tuple(folds))

    def find(self, key: str) -> Input:
        """The layer's input with this key."""
        return next(layer_input for layer_input in self.inputs if layer_input.key == key)
