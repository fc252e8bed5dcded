"""The builder of a compute graph: shared inputs and recurring operations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantkit.planning.context import Context
from quantkit.planning.shape import Layer, ModelShape
from quantkit.planning.tensors import F16, F32, I32, I64, Graph, Tensor, contiguous, leaf, matmul, same, view

if TYPE_CHECKING:
    from quantkit.planning.compressed import CompressedInputs


@dataclass(frozen=True)
class Cache:
    """Cache inputs of one kind of layer: cells, indices of new rows, mask, and the rotation of a quantized cache."""

    cells: int
    k_index: Tensor
    v_index: Tensor
    mask: Tensor
    k_turn: Tensor | None
    v_turn: Tensor | None


@dataclass(frozen=True)
class Index:
    """Cache inputs of an indexer: numbers of the new rows, mask, and the Hadamard rotation of queries and keys."""

    rows: Tensor
    mask: Tensor
    turn: Tensor


@dataclass(frozen=True)
class Blocks:
    """Inputs of a choice of blocks of positions, and the usual mask in float32 (llm_graph_input_msa).

    Attributes:
        bias: of blocks that a token always attends to, (blocks, tokens).
        seen: the mask by position, (positions, tokens).
        slots: the cell of each position.
        cells: the block of each cell.
        usual: the mask by cell, (cells, tokens).
    """

    bias: Tensor
    seen: Tensor
    slots: Tensor
    cells: Tensor
    usual: Tensor


class Drawing:
    """The graph of one physical batch of `n` tokens; `layer` is the current layer, None outside the layers."""

    def __init__(self, shape: ModelShape, context: Context) -> None:
        self.shape, self.context = shape, context
        self.graph = Graph()
        self.n = context.tokens
        self.layer: int | None = None
        self.positions = leaf("positions", self.n * shape.positions_per_token, size=I32)
        self.query_scale = leaf("query scale", 1, 1, self.n)
        self.outputs = leaf("outputs", self.n, size=I32)
        self.tokens = leaf("tokens", self.n, size=I32)
        self.layer_inputs: Tensor | None = None
        copies = leaf("state copies", 1, size=I32)
        self.state_copies, self.other_copies = view(copies, (1,)), view(copies, (0,))
        self.embedding: Tensor | None = None
        self.caches = {slides: self._cache(slides) for slides in (False, True) if not slides or shape.window}
        self.index = self._index() if shape.index_width else None
        self.chosen_cells: Tensor | None = None
        self.blocks: Blocks | None = None
        self.first_values: list[Tensor] = []
        self.buckets: Tensor | None = None
        self.compressed: CompressedInputs | None = None

    def named(self, name: str) -> str:
        """The full tensor name of a weight of the current layer, or of one outside the layers."""
        if self.layer is None:
            return name
        return f"{self.shape.traits.layer_prefix}blk.{self.layer % self.shape.n_stored}.{name}"

    def embedding_part(self, number: int) -> Tensor:
        """A part of the padded embedding: 0 is the token's, layer i adds part i + 1 (DeepStack)."""
        assert self.embedding is not None
        return view(self.embedding, (self.shape.n_embd, self.n), (self.embedding.stride[1],))

    def norm(self, x: Tensor, name: str, tensors: Mapping[str, tuple[int, ...]]) -> Tensor:
        """A norm, and its weight and bias if the file has them."""
        x = same(x, inplace=not self.shape.traits.layer_norm)
        # a few architectures name a norm without .weight
        for part in (name, f"{name}.weight", f"{name}.bias"):
            if part in tensors:
                x.norm_of = self.layer if x.weight is None else None
                x = same(x, weight=self.named(part))
        return x

    def linear(self, layer: Layer, name: str, x: Tensor) -> Tensor:
        """A product with a weight of the layer, and its bias if the file has one."""
        x = matmul(self.named(name + ".weight"), layer.rows(name), x)
        return same(x, weight=self.named(name + ".bias")) if layer.has(name + ".bias") else x

    def rope(self, x: Tensor) -> Tensor:
        """Rotary positions."""
        out = Tensor(x.shape, F32, (x, self.positions), inplace=True)
        out.stride = contiguous(out.shape, F32)
        return out

    def _cache(self, slides: bool) -> Cache:
        shape, context = self.shape, self.context
        cells = context.window_cells(shape.window) if slides else context.cells
        v_rows = self.n if context.flash_on else self.n * shape.widest_values
        turns: list[Tensor | None] = [None, None]
        if context.kv_type != "f16":
            cached_layers = [layer for layer in shape.layers if layer.slides == slides and layer.shared_from is None]
            for i, sizes in enumerate(
                ({layer.head_k for layer in cached_layers}, {layer.head_v for layer in cached_layers})
            ):
                head = next(iter(sizes)) if len(sizes) == 1 else 0
                if head and head % 64 == 0 and not shape.is_mla:
                    size = 64 if i else largest_turn(head)
                    turns[i] = leaf("turn", size, size)
        return Cache(
            cells,
            leaf("k index", self.n, size=I64),
            leaf("v index", v_rows, size=I64),
            leaf("mask", cells, self.n, size=F16 if context.flash_on else F32),
            *turns,
        )

    def _index(self) -> Index:
        """Inputs of an indexer, which llama.cpp computes in one operation with a float16 mask."""
        size = largest_turn(self.shape.index_width)
        mask = leaf("index mask", self.context.cells, self.n, size=F16)
        return Index(leaf("index rows", self.n, size=I64), mask, leaf("index turn", size, size))


def largest_turn(head: int) -> int:
    """Size of the Hadamard rotation of heads of this width."""
    size = 64
    while head % (2 * size) == 0:
        size *= 2
    return size
