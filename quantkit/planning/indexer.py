"""The graph of an indexer, which masks the tokens that a query does not attend to (src/models/deepseek32.cpp)."""

from quantkit.gguf.types import block_size
from quantkit.planning.drawing import Drawing
from quantkit.planning.shape import Layer
from quantkit.planning.tensors import I32, Tensor, cache_of, fresh, leaf, same, stored, view


def indexed_mask(d: Drawing, x: Tensor, queries: Tensor, layer: Layer) -> Tensor:
    """The mask of a layer (cells, tokens): the cells with the highest scores keep the values of the usual mask.

    `queries`: the compressed queries of attention, after their norm. A layer without an indexer takes the cells that
    the layer before chose.
    """
    if layer.has("indexer.attn_k.weight"):
        d.chosen_cells = _chosen_cells(d, x, queries, layer)
    assert d.chosen_cells is not None
    mask = d.caches[False].mask
    cells, count = mask.shape[0], d.chosen_cells.shape[0]
    hidden = same(mask)
    rows = view(hidden, (1, cells, d.n))
    chosen = view(d.chosen_cells, (count, d.n))
    zeros = leaf("zeros", 1, count, d.n)
    zeros.kind = "constant"
    shown = stored(rows, same(zeros), chosen)
    return same(view(shown, (cells, d.n)), mask)


def _chosen_cells(d: Drawing, x: Tensor, queries: Tensor, layer: Layer) -> Tensor:
    """Numbers of the cells with the highest scores (cells, tokens). The indexer's keys have their own cache."""
    index = d.index
    assert index is not None
    heads, width = layer.rows("indexer.proj"), layer.rows("indexer.attn_k")
    index_queries = d.rope(view(d.linear(layer, "indexer.attn_q_b", queries), (width, heads, d.n)))
    keys = same(d.linear(layer, "indexer.attn_k", x), inplace=False)
    for part in ("weight", "bias"):
        keys = same(keys, weight=d.named(f"indexer.k_norm.{part}"))
    keys = d.rope(view(keys, (width, 1, d.n)))
    if not d.shape.traits.independent_streams:
        # all graphs but hy_v4's have the Hadamard rotation
        index_queries, keys = (fresh(part.shape, index.turn, part) for part in (index_queries, keys))
    size = block_size(d.context.kv_cache)
    cache = cache_of("index keys", width, index.mask.shape[0], size=size[1] / size[0], layer=d.layer)
    d.graph.expand(stored(cache, view(keys, (width, d.n)), index.rows))
    weights = view(d.linear(layer, "indexer.proj", x), (heads, d.n))
    cells = index.mask.shape[0]
    kept = view(cache, (width, 1, cells))
    scores = fresh((cells, d.n), view(index_queries, (width, heads, d.n)), kept, same(weights), index.mask)
    count = min(cells, int(d.shape.number("attention.indexer.top_k")))
    return fresh((count, d.n), fresh((count, d.n), scores, size=I32), size=I32)
