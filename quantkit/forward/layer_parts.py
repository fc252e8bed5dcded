"""A part of a layer, as linears: its inputs, and the folds within it."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache, cached_property

from quantkit.forward.config_keys import Config, given
from quantkit.forward.linears import Input, NormFold, RowFold


@dataclass(frozen=True)
class LayerNames:
    """A layer by its tensors' names, which begin with `at`; `names` are all of the checkpoint."""

    config: Config
    number: int
    at: str
    names: Collection[str]

    @cached_property
    def hidden(self) -> int:
        """Width of the hidden states."""
        return int(given(self.config, "hidden_size", "n_embd", "d_model", "dim"))


@dataclass(frozen=True)
class Part:
    """A part's inputs, its own first; the folds within it; the keys of the inputs that read the norm before it."""

    inputs: tuple[Input, ...]
    folds: tuple[NormFold | RowFold, ...]
    fed: tuple[str, ...]


NO_PART = Part((), (), ())


def side_by_side(first: Part, second: Part) -> Part:
    """Two parts that read the same norm."""
    both = replace(first.inputs[0], linears=first.inputs[0].linears + second.inputs[0].linears)
    return Part((both, *first.inputs[1:], *second.inputs[1:]), first.folds + second.folds, first.fed)


@cache
def rows(start: int, stop: int, step: int) -> tuple[int, ...]:
    """The rows from `start` to `stop`; hundreds of experts share one tuple."""
    return tuple(range(start, stop, step))


@cache
def rows_of_heads(first: int, step: int, heads: int, shared_by: int, size: int) -> tuple[int, ...]:
    """The row of the values for each input of attention's last linear; all layers share one tuple."""
    return tuple(first + head // shared_by * step + i for head in range(heads) for i in range(size))
