"""The graph of attention, as llama.cpp builds it (build_attn, build_attn_mha, deepseek2)."""

from dataclasses import dataclass

from quantkit.gguf.types import block_size
from quantkit.planning.drawing import Drawing
from quantkit.planning.indexer import indexed_mask
from quantkit.planning.shape import Layer
from quantkit.planning.tensors import (
    F16,
    F32,
    Tensor,
    cache_of,
    contiguous,
    fresh,
    matmul,
    permuted,
    same,
    stored,
    view,
)


@dataclass(frozen=True)
class _Heads:
    """Queries, keys and values by head; without keys and values, an earlier layer stores them."""

    q: Tensor
    k: Tensor | None = None
    v: Tensor | None = None


def attention(d: Drawing, x: Tensor, layer: Layer) -> Tensor:
    """Attention of a layer to all cells of its cache, and its output projection."""
    gates: Tensor | None = None
    if layer.has("attn_qkv.weight"):
        whole = d.linear(layer, "attn_qkv", x)
        width = layer.rows("attn_qkv") * F32
        sizes = ((layer.head_k, layer.n_head), (layer.head_k, layer.n_head_kv), (layer.head_v, layer.n_head_kv))
        q, k, v = (view(whole, (*heads, d.n), (heads[0] * F32, width)) for heads in sizes)
    elif layer.shared_from is not None:
        return _to_shared_cache(d, x, layer)
    else:
        q, k = (d.linear(layer, name, x) for name in ("attn_q", "attn_k"))
        v = d.linear(layer, "attn_v", x) if layer.has("attn_v.weight") else k
        if layer.has("attn_q_norm.weight") and layer.rows("attn_q_norm") == q.shape[0] != layer.head_k:
            # the norm covers all heads together, before the split into heads
            q, k = d.norm(q, "attn_q_norm", layer.tensors), d.norm(k, "attn_k_norm", layer.tensors)
        if d.shape.traits.gated_attention:
            q = gates = view(
                q, (layer.head_k, layer.n_head, d.n), (width := 2 * layer.head_k * F32, width * layer.n_head)
            )
        else:
            q = view(q, (layer.head_k, layer.n_head, d.n))
        k = view(k, (layer.head_k, layer.n_head_kv, d.n))
        v = view(v, (layer.head_v, layer.n_head_kv, d.n))
    if layer.has("attn_q_norm.weight") and layer.rows("attn_q_norm") == layer.head_k:
        q, k = d.norm(q, "attn_q_norm", layer.tensors), d.norm(k, "attn_k_norm", layer.tensors)
    if d.shape.traits.normed_values:
        v = same(v)
    if _has_rope(d):
        q, k = d.rope(q), d.rope(k)
    if d.shape.traits.scaled_query:
        q = same(q)
    if d.shape.number("attention.temperature_scale") or (d.shape.traits.late_queries and not layer.slides):
        q = same(q, d.query_scale)
    out = _attend(d, layer, _Heads(q, k, v))
    if gates is not None:
        out = same(out, same(fresh(out.shape, view(gates, gates.shape[:3], gates.stride[1:3]))))
    if layer.has("attn_gate.weight"):
        gate = same(d.linear(layer, "attn_gate", x))
        if layer.rows("attn_gate") == layer.n_head:
            # one number for each head
            by_head = view(out, (layer.head_v, layer.n_head, d.n))
            out = view(same(by_head, view(gate, (1, layer.n_head, d.n))), out.shape)
        else:
            out = same(out, gate)
    return d.linear(layer, "attn_output", out)


def biased_attention(d: Drawing, x: Tensor, layer: Layer, bias: Tensor) -> Tensor:
    """Attention whose scores get a bias, which rules flash attention out, and its output projection (T5)."""
    q, k, v = (d.linear(layer, name, x) for name in ("attn_q", "attn_k", "attn_v"))
    q = view(q, (layer.head_k, layer.n_head, d.n))
    k, v = view(k, (layer.head_k, layer.n_head_kv, d.n)), view(v, (layer.head_v, layer.n_head_kv, d.n))
    return d.linear(layer, "attn_o", _attend(d, layer, _Heads(q, k, v), bias=bias))


def _has_rope(d: Drawing) -> bool:
    """Whether the layer that is drawn has rotary positions."""
    if d.shape.traits.rope_in_windows and d.layer is not None:
        layer = d.shape.layers[d.layer]
        first = int(d.shape.number("leading_dense_block_count"))
        return layer.slides or d.layer < first or not d.shape.window
    pattern = d.shape.keys.get("attention.rope_pattern")
    return d.shape.traits.has_rope(d.shape.n_layer) and (pattern is None or d.layer is None or bool(pattern[d.layer]))


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _to_shared_cache(d: Drawing, x: Tensor, layer: Layer) -> Tensor:
    """Attention of a layer to the keys and values of an earlier one."""
    q = view(d.linear(layer, "attn_q", x), (layer.head_k, layer.n_head, d.n))
    q = d.norm(q, "attn_q_norm", layer.tensors) if layer.has("attn_q_norm.weight") else q
    q = d.rope(q) if _has_rope(d) else q
    return d.linear(layer, "attn_output", _attend(d, layer, _Heads(q)))


def mla(d: Drawing, x: Tensor, layer: Layer) -> Tensor:
    """Multi-head latent attention: the cache holds one compressed vector per token (DeepSeek)."""
    shape, n, n_head = d.shape, d.n, layer.n_head
    mask: Tensor | None = None
    rank = layer.rows("attn_kv_a_norm")
    rope = int(shape.number("rope.dimension_count"))
    if layer.has("attn_q_a.weight"):
        q = d.norm(d.linear(layer, "attn_q_a", x), "attn_q_a_norm", layer.tensors)
        mask = indexed_mask(d, x, q, layer) if shape.index_width and not layer.slides else None
        q = d.linear(layer, "attn_q_b", q)
    else:
        q = d.linear(layer, "attn_q", x)
    head = q.shape[0] // n_head
    q = view(q, (head, n_head, n))
    whole = d.linear(layer, "attn_kv_a_mqa", x)
    width = (rank + rope) * F32
    turned = d.rope if _has_rope(d) else _as_it_is
    k_rope = view(whole, (rope, 1, n), (width, width))
    k_rope = turned(d.norm(k_rope, "attn_k_norm", layer.tensors) if layer.has("attn_k_norm.weight") else k_rope)
    squeezed = d.norm(view(whole, (rank, n), (width,)), "attn_kv_a_norm", layer.tensors)
    if shape.is_mla:
        q_rope = turned(view(q, (rope, n_head, n), (head * F32, head * n_head * F32)))
        q_rest = view(q, (head - rope, n_head, n), (head * F32, head * n_head * F32))
        absorbed = matmul(d.named("attn_k_b.weight"), rank, permuted(q_rest))
        q = fresh((rank + rope, n_head, n), permuted(absorbed), q_rope)
        v = view(squeezed, (rank, 1, n))
        k = fresh((rank + rope, 1, n), v, k_rope)
        out = _attend(d, layer, _Heads(q, k, v), v_rows=layer.rows("attn_v_b"), mask=mask)
    else:
        kv = d.linear(layer, "attn_kv_b", squeezed)
        per_head = kv.shape[0] // n_head
        value = per_head - (head - rope)
        k_nope = view(kv, (head - rope, n_head, n), (per_head * F32, per_head * n_head * F32))
        v = fresh((value, n_head, n), view(kv, (value, n_head, n), (per_head * F32, per_head * n_head * F32)))
        q = turned(q)
        k = fresh((head, n_head, n), k_nope, fresh((rope, n_head, n), k_rope))
        out = _attend(d, layer, _Heads(q, k, v))
    if layer.has("attn_gate.weight"):
        gate = d.linear(layer, "attn_gate", x)
        if gate.shape[0] == n_head:
            by_head, of_heads = view(out, (layer.rows("attn_v_b"), n_head, n)), (1, n_head, n)
            if shape.traits.kimi_delta:
                # the graph of bailingmoe3 copies the product
                out = fresh(out.shape, same(by_head, same(view(gate, of_heads))))
            else:
                out = view(same(by_head, view(same(gate), of_heads)), out.shape)
        else:
            out = same(out, same(gate))
    return d.linear(layer, "attn_output", out)


def _attend(
    d: Drawing,
    layer: Layer,
    heads: _Heads,
    *,
    v_rows: int = 0,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Store keys and values, attend to all cells, (head_v * n_head, n); `v_rows` are those of MLA's attn_v_b.

    `mask`: the mask of an indexer in place of the cache's. `bias`: added to the scores.
    """
    cache = d.caches[layer.slides]
    mask = cache.mask if mask is None else mask
    q, k, v = heads.q, heads.k, heads.v
    if cache.k_turn is not None:
        q, k = turned(q, cache.k_turn), k and turned(k, cache.k_turn)
    if cache.v_turn is not None:
        v = v and turned(v, cache.v_turn)
    flash, cells = d.context.flash_on, cache.cells
    for projection in (q, k, v) if d.shape.window else (q, v, k):
        if projection is not None:
            d.graph.expand(projection)
    keys, values = cached(d, layer, k, v)
    head_v, n_head = values.shape[0], layer.n_head
    q = permuted(view(q, (*q.shape[:3], 1), q.stride[1:]))
    if flash and bias is None:
        out = fresh((head_v, n_head, d.n), q, permuted(keys), permuted(values), mask)
        out.layer = d.layer
        if v_rows:
            out = fresh((v_rows, n_head, d.n), permuted(_decompressed(d, out, v_rows, n_head)))
        out = view(out, (out.shape[0] * n_head, d.n))
    else:
        scores = fresh((cells, d.n, n_head), permuted(keys), q)
        if d.shape.number("attn_logit_softcapping"):
            scores = same(same(same(scores)))
        scores = same(same(scores, bias) if bias is not None else scores, mask)
        if not layer.head_v or flash:
            # they stand in rows
            values = fresh((cells, head_v, layer.n_head_kv), values, size=F16)
        out = fresh((head_v, d.n, n_head), permuted(values), scores)
        if v_rows:
            out = _decompressed(d, out, v_rows, n_head)
        out = fresh((out.shape[0] * n_head, d.n), permuted(out))
        out.on_cpu = not d.context.kv_on_gpu
    d.graph.expand(out)
    if cache.v_turn is not None:
        out = turned(out, cache.v_turn)
    return out


def cached(d: Drawing, layer: Layer, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor]:
    """Store keys and values in the cache of their layer; the keys and values of all its cells."""
    cache = d.caches[layer.slides]
    size = block_size(d.context.kv_cache)
    element = size[1] / size[0]
    number = d.layer if layer.shared_from is None else layer.shared_from
    k_cache = cache_of("k cache", layer.head_k * layer.n_head_kv, cache.cells, size=element, layer=number)
    if k is not None:
        d.graph.expand(stored(k_cache, view(k, (layer.head_k * layer.n_head_kv, d.n)), cache.k_index))
    keys = view(k_cache, (layer.head_k, layer.n_head_kv, cache.cells))
    head_v = layer.head_v if v is None else v.shape[0]
    if not layer.head_v:
        gap = layer.head_k * element
        return keys, view(keys, (head_v, layer.n_head_kv, cache.cells), (gap, gap))
    v_cache = cache_of("v cache", layer.head_v * layer.n_head_kv, cache.cells, size=element, layer=number)
    if v is not None:
        d.graph.expand(stored(v_cache, _merged(d, v, layer), cache.v_index))
    return keys, view(v_cache, (layer.head_v, layer.n_head_kv, cache.cells))


def _merged(d: Drawing, v: Tensor, layer: Layer) -> Tensor:
    """Values as rows of a cache: without flash attention in one piece, as wide as those of the widest layer."""
    width = layer.head_v * layer.n_head_kv
    if d.context.flash_on:
        return view(v, (width, d.n))
    rows = view(v, (width, d.n)) if v.stride == contiguous(v.shape, F32) else fresh((width, d.n), v)
    return rows if width == d.shape.widest_values else fresh((d.shape.widest_values, d.n), rows)


def _decompressed(d: Drawing, x: Tensor, rows: int, n_head: int) -> Tensor:
    out = Tensor((rows, d.n, n_head, 1), F32, (x,))
    out.weight = d.named("attn_v_b.weight")
    return out


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """The Hadamard rotation before a quantized cache (llama_mul_mat_hadamard)."""
    size = turn.shape[0]
    rows = x.shape[0] * x.shape[1] * x.shape[2] // size
    flat = view(x, (size, rows)) if x.stride == contiguous(x.shape, F32) else fresh((size, rows), x)
    return view(fresh((size, rows), turn, flat), x.shape)
