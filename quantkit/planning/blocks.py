"""The graph of attention to chosen blocks of keys, with flash attention (src/models/minimax-m3.cpp)."""

from quantkit.gguf.types import block_size
from quantkit.planning.attention import cached, turned
from quantkit.planning.drawing import Blocks, Drawing
from quantkit.planning.shape import Layer
from quantkit.planning.tensors import (
    F16,
    I32,
    Tensor,
    cache_of,
    fresh,
    leaf,
    permuted,
    product,
    same,
    stored,
    view,
)

# llama.cpp reserves its graphs for this many positions, whatever the context is (get_n_pos of an empty cache)
_POSITIONS = 256


def block_attention(d: Drawing, x: Tensor, layer: Layer) -> Tensor:
    """Attention of a layer, and its output projection. Each key head has an index head and a mask of its own."""
    n, heads, kv_heads = d.n, layer.n_head, layer.n_head_kv
    q, k, v = (d.linear(layer, name, x) for name in ("attn_q", "attn_k", "attn_v"))
    q, k = view(q, (layer.head_k, heads, n)), view(k, (layer.head_k, kv_heads, n))
    v = view(v, (layer.head_v, kv_heads, n))
    q, k = d.norm(q, "attn_q_norm", layer.tensors), d.norm(k, "attn_k_norm", layer.tensors)
    q, k = d.rope(q), d.rope(k)
    queries, keys = _index(d, x, layer)
    cache = d.caches[False]
    if cache.k_turn is not None:
        q, k = turned(q, cache.k_turn), turned(k, cache.k_turn)
    if cache.v_turn is not None:
        v = turned(v, cache.v_turn)
    for projection in (q, k, v):
        d.graph.expand(projection)
    all_keys, all_values = cached(d, layer, k, v)
    mask = _mask(d, queries, keys, kv_heads)
    out = fresh((layer.head_v, heads // kv_heads, n, kv_heads), view(q, q.shape[:3]), all_keys, all_values, mask)
    out.layer = d.layer
    if kv_heads > 1:
        out = fresh((layer.head_v, heads // kv_heads, kv_heads, n), view(out, out.shape))
    out = view(out, (layer.head_v * heads, n))
    if cache.v_turn is not None:
        out = turned(out, cache.v_turn)
    return d.linear(layer, "attn_output", out)


def _index(d: Drawing, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """Index queries (width, heads, tokens), and the cached index keys (width, cells)."""
    assert d.index is not None
    width, cells = d.shape.index_width, d.caches[False].cells
    queries = d.linear(layer, "indexer.q_proj", x)
    keys = d.linear(layer, "indexer.k_proj", x)
    queries, keys = view(queries, (width, queries.shape[0] // width, d.n)), view(keys, (width, 1, d.n))
    queries = d.rope(d.norm(queries, "indexer.q_norm", layer.tensors))
    keys = d.rope(d.norm(keys, "indexer.k_norm", layer.tensors))
    size = block_size(d.context.kv_cache)
    cache = cache_of("index keys", width, cells, size=size[1] / size[0], layer=d.layer)
    d.graph.expand(stored(cache, view(keys, (width, d.n)), d.index.rows))
    return queries, view(cache, (width, cells))


def _mask(d: Drawing, queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """The mask (cells, tokens, 1, heads), float16: blocks with the best scores keep the values of the usual mask."""
    n, cells, block = d.n, d.caches[False].cells, int(d.shape.number("attention.indexer.block_size"))
    if d.blocks is None:
        d.blocks = _inputs(d, -(-_POSITIONS // block), block)
    inputs = d.blocks
    count = inputs.bias.shape[0]
    positions, top = count * block, min(int(d.shape.number("attention.indexer.top_k")), count)
    by_position = fresh((queries.shape[0], positions), keys, view(inputs.slots, (positions,)))
    scores = view(product(by_position, view(queries, (queries.shape[0], heads * n))), (positions, heads, n))
    scores = _added(scores, view(inputs.seen, (positions, 1, n)))
    best = fresh((count, heads, n), scores)
    bias = view(inputs.bias, (count, 1, n))
    chosen = fresh((top, heads, n), same(best, bias), size=I32)
    hidden = fresh((count, heads, n), fresh((count, 1, n), same(bias), size=F16), size=F16)
    zeros = same(fresh((top, heads, n), chosen))
    shown = stored(
        view(hidden, (1, count, heads * n)), view(zeros, (1, top, heads * n)), view(chosen, (top, heads * n))
    )
    by_head = fresh((count, n, heads), permuted(view(shown, (count, heads, n))), size=F16)
    by_block = fresh((n * heads, count), view(by_head, (count, n * heads)), size=F16)
    by_cell = fresh((n * heads, cells), by_block, view(inputs.cells, (cells,)))
    turned_back = view(fresh((cells, n * heads), view(by_cell, by_cell.shape)), (cells, n, heads))
    return fresh(
        (cells, n, 1, heads), view(_added(turned_back, view(inputs.usual, (cells, n))), (cells, n, 1, heads)), size=F16
    )


def _inputs(d: Drawing, count: int, block: int) -> Blocks:
    """The inputs that all layers share."""
    mask = d.caches[False].mask
    return Blocks(
        leaf("block bias", count, d.n),
        leaf("seen positions", count * block, d.n),
        leaf("slots", count * block, size=I32),
        leaf("blocks of cells", mask.shape[0], size=I32),
        fresh(mask.shape[:2], mask),
    )


def _added(x: Tensor, other: Tensor) -> Tensor:
    """The sum, in the memory of x (ggml_add_inplace)."""
    return Tensor(x.shape, x.size, (x, other), root=x)
