"""The linears of a layer as data: which see the same input, and what stands before an input and can take a scale."""

from dataclasses import dataclass

from quantkit.forward.description import Form

PLAIN = Form()


@dataclass(frozen=True)
class Linear:
    """A matrix of the checkpoint (native names): `name` + form.weight, (n_out, n_in), or turned (n_in, n_out).

    `index`: the matrix of that number in a tensor that stacks several (experts of fused checkpoints), else None.
    `kept`: never quantized (a router, a shared expert's gate).
    """

    name: str
    n_in: int
    n_out: int
    form: Form = PLAIN
    index: int | None = None
    kept: bool = False


@dataclass(frozen=True)
class Input:
    """One distinct input of linears. `key` is unique within its layer; `expert`: only tokens routed to it come.

    Keys: `attention`, `attention.out`, `feed`, `feed.down`, `expert.E`, `expert.E.down`, `shared.down`, and for latent
    attention `attention.q`, `attention.kv`. A router and a shared expert's gate and up see `feed`. In parallel layers
    of one norm the feed-forward's linears belong to `attention`.
    """

    key: str
    linears: tuple[Linear, ...]
    expert: int | None = None

    @property
    def width(self) -> int:
        return self.linears[0].n_in


@dataclass(frozen=True)
class NormFold:
    """A norm whose output is every input named: its weight (and bias) over s, the inputs' linears times s.

    `offset` is what the architecture adds to the norm's weight; the stored weight becomes (w + offset) / s - offset.
    """

    norm: str
    offset: float
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class RowFold:
    """Output rows of a linear that become an input, elementwise times something or through attention.

    Input channel i of `input` is made by output row `rows[i]` of `linear` (several channels may share a row, as with
    grouped queries: they share a scale). The rows of weight and bias over s, the input's linears times s.
    """

    linear: Linear
    rows: tuple[int, ...]
    input: str


@dataclass(frozen=True)
class LayerLinears:
    """All of a layer, in the order in which a forward meets them: expert E's input, then its down, then expert E+1."""

    number: int
    inputs: tuple[Input, ...]
    folds: tuple[NormFold | RowFold, ...]

    def find(self, key: str) -> Input:
        """The input of that key, which must be one of the layer's."""
        return next(each for each in self.inputs if each.key == key)
