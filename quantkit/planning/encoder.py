"""The graph of an encoder in llama.cpp: attention to all tokens without a cache, pooling, Dense modules.

Norms follow the sums (BERT), or precede each part (ModernBERT, EmbeddingGemma). Source: src/models/bert.cpp,
modern-bert.cpp and gemma-embedding.cpp; build_attn_inp_no_cache, build_attn_mha and build_pooling of
src/llama-graph.cpp.
"""

from collections.abc import Sequence

from quantkit.planning.context import Context
from quantkit.planning.drawing import Drawing
from quantkit.planning.encoder_decoder import position_bias
from quantkit.planning.feed_forward import feed_forward
from quantkit.planning.shape import Layer, ModelShape
from quantkit.planning.tensors import F16, F32, I32, Graph, Tensor, fresh, leaf, matmul, permuted, same, view

NO_POOLING, MEAN, CLS, LAST, RANK = range(5)
"""Values of the key pooling_type (enum llama_pooling_type)."""


def encoder_graph(shape: ModelShape, context: Context, layers: Sequence[int] | None = None) -> Graph:
    """The graph of one sequence of `context.tokens` tokens; `layers` as for prompt_graph."""
    d = Drawing(shape, context)
    x = _embedded(d)
    mask, sliding = (leaf("mask", d.n, d.n, size=F16 if context.flash_on else F32) for _ in range(2))
    d.buckets = leaf("buckets", d.n, d.n, size=I32)
    for number in range(shape.n_layer) if layers is None else layers:
        d.layer = number
        layer = shape.layers[number]
        draw = _layer if layer.has("attn_output_norm.weight") else _prenormed_layer
        x = draw(d, x, layer, sliding if layer.slides else mask)
    d.layer = None
    for name in ("output_norm", "enc.output_norm"):
        if f"{name}.weight" in shape.tensors:
            x = d.norm(x, name, shape.tensors)
    x.kept = True
    d.graph.expand(x)
    pooled = _pooled(d, x)
    for name in ("dense_2.weight", "dense_3.weight"):
        if name in shape.tensors:
            pooled = matmul(name, shape.tensors[name][0], pooled)
    pooled.kept = True
    d.graph.expand(pooled)
    return d.graph


def _embedded(d: Drawing) -> Tensor:
    """The sum of the embeddings of tokens, token types and positions, normed."""
    tensors, width = d.shape.tensors, d.shape.n_embd
    x = fresh((width, d.n), leaf("tokens", d.n, size=I32))
    x.weight = "token_embd.weight"
    d.graph.expand(x)
    # the graph reserves an input for embeddings in place of tokens
    d.graph.expand(leaf("embeddings", width, d.n))
    if "token_types.weight" in tensors:
        x = same(x, weight="token_types.weight")
    if "position_embd.weight" in tensors:
        positions = fresh((width, d.n), d.positions)
        positions.weight = "position_embd.weight"
        x = same(positions, x)
    if d.shape.traits.scaled_embedding:
        x = same(x)
    return d.norm(x, "token_embd_norm", tensors) if "token_embd_norm.weight" in tensors else x


def _layer(d: Drawing, x: Tensor, layer: Layer, mask: Tensor) -> Tensor:
    out = _attention(d, x, layer, mask)
    if d.layer == d.shape.n_layer - 1:
        out, x = (fresh((part.shape[0], d.n), part, d.outputs) for part in (out, x))
    before = x
    x = d.norm(same(out, x), "attn_output_norm", layer.tensors)
    if layer.has("attn_norm_2.weight"):
        x = d.norm(same(x, before), "attn_norm_2", layer.tensors)
    return d.norm(same(feed_forward(d, x, layer), x), "layer_output_norm", layer.tensors)


def _prenormed_layer(d: Drawing, x: Tensor, layer: Layer, mask: Tensor) -> Tensor:
    """Norms before each part, and after it if the file has them."""
    normed = d.norm(x, "attn_norm", layer.tensors) if layer.has("attn_norm.weight") else x
    out = _attention(d, normed, layer, mask)
    if d.layer == d.shape.n_layer - 1:
        out, x = (fresh((part.shape[0], d.n), part, d.outputs) for part in (out, x))
    if layer.has("post_attention_norm.weight"):
        out = d.norm(out, "post_attention_norm", layer.tensors)
    x = same(out, x)
    out = feed_forward(d, d.norm(x, "ffn_norm", layer.tensors), layer)
    if layer.has("post_ffw_norm.weight"):
        out = d.norm(out, "post_ffw_norm", layer.tensors)
    return same(out, x)


def _attention(d: Drawing, x: Tensor, layer: Layer, mask: Tensor) -> Tensor:
    """Attention of all tokens to all tokens, and its output projection."""
    sizes = ((layer.head_k, layer.n_head), (layer.head_k, layer.n_head_kv), (layer.head_v, layer.n_head_kv))
    if layer.has("attn_qkv.weight"):
        whole = d.linear(layer, "attn_qkv", x)
        q, k, v = (view(whole, (*heads, d.n), (heads[0] * F32, whole.stride[1])) for heads in sizes)
    else:
        names = ("attn_q", "attn_k", "attn_v")
        q, k, v = (view(d.linear(layer, name, x), (*heads, d.n)) for name, heads in zip(names, sizes, strict=True))
    if layer.has("attn_q_norm.weight") and layer.rows("attn_q_norm") == layer.head_k:
        q, k = d.norm(q, "attn_q_norm", layer.tensors), d.norm(k, "attn_k_norm", layer.tensors)
    elif layer.has("attn_q_norm.weight"):
        # the norm covers all heads together
        q, k = (
            view(d.norm(view(part, (part.shape[0] * part.shape[1], d.n)), name, layer.tensors), part.shape[:3])
            for part, name in ((q, "attn_q_norm"), (k, "attn_k_norm"))
        )
    if d.shape.traits.positions == "rope":
        q, k = d.rope(q), d.rope(k)
    if d.shape.traits.scaled_query:
        q = same(q)
    for projection in (q, k, v):
        d.graph.expand(projection)
    q = permuted(view(q, (*q.shape[:3], 1), q.stride[1:]))
    k, v = permuted(k), permuted(v)
    biased = d.shape.traits.relative_positions
    if d.context.flash_on and not biased:
        halves = [fresh(part.shape, part, size=F16) for part in (k, v)]
        out = fresh((layer.head_v, layer.n_head, d.n), q, *halves, mask)
        out.layer = d.layer
        out = view(out, (layer.head_v * layer.n_head, d.n))
    else:
        scores = fresh((d.n, d.n, layer.n_head), k, q)
        if biased:
            assert d.buckets is not None
            scores = same(scores, position_bias(d, layer, d.buckets))
        scores = same(scores, mask)
        columns = fresh((d.n, layer.head_v, layer.n_head_kv), v)
        out = fresh((layer.head_v, d.n, layer.n_head), columns, scores)
        out = fresh((layer.head_v * layer.n_head, d.n), permuted(out))
        out.on_cpu = not d.context.kv_on_gpu
    d.graph.expand(out)
    return d.linear(layer, "attn_o" if biased else "attn_output", out)


def _pooled(d: Drawing, x: Tensor) -> Tensor:
    """The pooled embedding, or the scores of a reranker."""
    shape, pooling = d.shape, int(d.shape.number("pooling_type"))
    if pooling == NO_POOLING:
        return x
    if MEAN in (pooling, int(shape.number("classifier.pooling_type")) if pooling == RANK else NO_POOLING):
        x = fresh((shape.n_embd, 1), fresh((d.n, shape.n_embd), x), leaf("mean", d.n, 1))
    else:
        x = fresh((shape.n_embd, 1), x, leaf("chosen", 1, size=I32))
    if pooling == RANK:
        for name in ("cls", "cls.output"):
            if f"{name}.weight" in shape.tensors:
                x = matmul(f"{name}.weight", shape.tensors[f"{name}.weight"][0], x)
                x = same(x, weight=f"{name}.bias") if f"{name}.bias" in shape.tensors else x
                x = same(x) if name == "cls" else x
                if name == "cls" and "cls.norm.weight" in shape.tensors:
                    x = d.norm(x, "cls.norm", shape.tensors)
    return x
