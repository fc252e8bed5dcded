"""Which tensor of a base checkpoint a module of an adapter is, and whether the two fit."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from quantkit.adapters.adapter import Adapter
from quantkit.adapters.base_names import BaseNames
from quantkit.checkpoint import Checkpoint, TensorInfo
from quantkit.checkpoint.jsonfile import shown
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families import Family, MappedTensor, find_family, map_tensors

_PAIRS = (("A", "B"), ("embedding_A", "embedding_B"))


@dataclass(frozen=True)
class Product:
    """The low-rank matrices of one tensor: A (r, in) and B (out, r), as the adapter stores them.

    `embedding`: A is (r, tokens), and B (width, r). `transposed`: the checkpoint stores the linear as (in, out).
    """

    module: str
    name: str
    a: TensorInfo
    b: TensorInfo
    embedding: bool = False
    transposed: bool = False

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def by_column(self) -> bool:
        """Whether the outputs of B are the columns of the checkpoint's tensor."""
        return self.embedding or self.transposed


class Matcher:
    """Names and shapes of a checkpoint, for the modules of adapters. `family`: None for an unknown architecture."""

    def __init__(self, checkpoint: Checkpoint, *, bridged: bool = False) -> None:
        """`bridged`: llama.cpp's converter reads the checkpoint, so no family is looked up."""
        self.checkpoint = checkpoint
        self.base = BaseNames(None if bridged else find_family(checkpoint.config), checkpoint.tensors)
        self.embedding, self.head = self.base.embedding, self.base.head

    @property
    def family(self) -> Family:
        """The family of the checkpoint, which has one."""
        assert self.base.family is not None
        return self.base.family

    @property
    def names(self) -> Mapping[str, str]:
        """The checkpoint's names, by the name that the family's rules have."""
        return self.base.by_rule

    def update(self) -> None:
        """Read the checkpoint's names again after it was amended."""
        self.base.update(self.checkpoint.tensors)

    def find(self, module: str, leaf: str) -> str | None:
        """The checkpoint's name of a module's tensor, None if it has none."""
        return self.base.find(f"{module}.{leaf}")

    def is_tied_head(self, module: str) -> bool:
        """Whether a module is the output head of a checkpoint that has none but its embedding."""
        name = self.base.rule_name(f"{module}.weight")
        return name == self.head and self.head not in self.names and self.embedding in self.names

    def missing(self, adapter: Adapter, module: str, leaf: str) -> CheckpointError:
        """The error for a tensor that the checkpoint does not have."""
        tensor_name = f"{module}.{leaf}"
        close = difflib.get_close_matches(tensor_name, self.checkpoint.tensors, n=1)
        hint = f" (the nearest is {close[0]})" if close else ""
        base = f"; the adapter was made for {shown(adapter.config.base)}" if adapter.config.base else ""
        return CheckpointError(
            f"{adapter.source} changes {shown(tensor_name)}, which {self.checkpoint.source} does not have{hint}{base};"
            " pass the base model that belongs to the adapter"
        )

    def check_shape(self, adapter: Adapter, tensor: TensorInfo, name: str, shape: tuple[int, ...]) -> None:
        """Raise CheckpointError unless the checkpoint's tensor `name` has `shape`; `tensor` is the adapter's."""
        actual = self.checkpoint.tensors[name].shape
        if tuple(actual) != tuple(shape):
            base = f" ({shown(adapter.config.base)})" if adapter.config.base else ""
            raise CheckpointError(
                f"{shown(tensor.name)} of {adapter.source} is for a tensor of shape {list(shape)}, but {shown(name)} of"
                f" {self.checkpoint.source} has {list(actual)}; pass the base model that belongs to the adapter{base}"
            )

    def product(self, adapter: Adapter, module: str, name: str) -> Product | None:
        """The low-rank matrices of a module, which is the checkpoint's tensor `name`; None if it has none.

        Raises:
            CheckpointError: a matrix is missing, or a rank or a shape does not fit.
            UnsupportedError: the matrices are not of a linear or an embedding.
        """
        parts = adapter.modules[module]
        for first, second in _PAIRS:
            if first in parts:
                a, b = parts[first], parts[second]
                break
        else:
            return None
        if len(a.shape) != 2 or len(b.shape) != 2:
            raise UnsupportedError(
                f"{shown(a.name)} of {adapter.source} has shape {list(a.shape)}; quantkit reads adapters of linears"
                " and embeddings only, merge this one with PEFT's merge_and_unload first"
            )
        rank = adapter.config.rank_of(module)
        if a.shape[0] != rank or b.shape[1] != rank:
            raise CheckpointError(
                f"{shown(module)} of {adapter.source} has matrices of rank {a.shape[0]} and {b.shape[1]}, but"
                f" adapter_config.json makes it {rank}; take the adapter_config.json that belongs to these weights"
            )
        out, inputs = b.shape[0], a.shape[1]
        stored = tuple(self.checkpoint.tensors[name].shape)
        transposed = first == "A" and stored == (inputs, out) and self._is_transposed(adapter, name)
        product = Product(module, name, a, b, first != "A", transposed)
        self.check_shape(adapter, a, name, (inputs, out) if product.by_column else (out, inputs))
        return product

    @cached_property
    def mapped(self) -> list[MappedTensor]:
        """The tensors of the checkpoint's GGUF."""
        sizes = self.family.sizes(self.checkpoint.config, self.checkpoint.tensors)
        return map_tensors(self.family, sizes, self.checkpoint.tensors)

    def _is_transposed(self, adapter: Adapter, name: str) -> bool:
        """Whether the checkpoint stores a linear as (in, out); without a family PEFT's own setting decides."""
        return adapter.config.transposed if self.base.family is None else name in self._stored_transposed

    @cached_property
    def _stored_transposed(self) -> frozenset[str]:
        """Tensors that the checkpoint stores as (in, out), as GPT-2's Conv1D."""
        return frozenset(part.source for tensor in self.mapped for part in tensor.parts if part.take.transposed)


def check_pairs(adapter: Adapter) -> None:
    """Raise CheckpointError for a module that lacks one of its two matrices."""
    for parts in adapter.modules.values():
        for pair in _PAIRS:
            present = [part for part in pair if part in parts]
            if len(present) == 1:
                raise CheckpointError(
                    f"{adapter.source} has {shown(parts[present[0]].name)} without its other matrix; save the adapter"
                    " again"
                )
