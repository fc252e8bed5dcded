"""The graph of T5's decoder in llama.cpp (src/models/t5.cpp), which reads an encoder's output of the longest text.

llama.cpp reserves memory for this graph. That of the encoder needs no more, because it has no second attention.
"""

from quantkit.planning.attention import biased_attention
from quantkit.planning.drawing import Drawing
from quantkit.planning.feed_forward import feed_forward
from quantkit.planning.shape import Layer
from quantkit.planning.tensors import F16, F32, I32, Tensor, fresh, leaf, permuted, same, view


def decoder_layers(d: Drawing, x: Tensor) -> Tensor:
    """The hidden states after all layers of the decoder, from the embeddings x."""
    shape, length = d.shape, d.shape.context
    encoded = leaf("encoded", shape.n_embd, length)
    mask = leaf("mask of the encoder", length, d.n, size=F16 if d.context.flash_on else F32)
    buckets = leaf("buckets", d.caches[False].cells, d.n, size=I32)
    layers = [(number, layer) for number, layer in enumerate(shape.layers) if layer.tensors]
    for number, layer in layers:
        d.layer = number
        normed = d.norm(x, "attn_norm", layer.tensors)
        bias = position_bias(d, layer, buckets)
        x = same(biased_attention(d, normed, layer, bias), x)
        read = _cross_attention(d, d.norm(x, "cross_attn_norm", layer.tensors), layer, encoded, mask)
        if number == layers[-1][0]:
            read, x = (fresh((part.shape[0], d.n), part, d.outputs) for part in (read, x))
        x = same(read, x)
        x = same(feed_forward(d, d.norm(x, "ffn_norm", layer.tensors), layer), x)
    d.layer = None
    return x


def position_bias(d: Drawing, layer: Layer, buckets: Tensor) -> Tensor:
    """What each head adds to the scores, (cells, n, heads), from the buckets of distances (build_pos_bias)."""
    cells, n = buckets.shape[:2]
    rows = fresh((layer.n_head, cells * n), view(buckets, (cells * n,)))
    name = "attn_rel_b.weight"
    rows.weight = d.named(name) if layer.has(name) else d.named(name).replace(f".{d.layer}.", ".0.", 1)
    return fresh((cells, n, layer.n_head), view(rows, (cells, n, layer.n_head)))


def _cross_attention(d: Drawing, x: Tensor, layer: Layer, encoded: Tensor, mask: Tensor) -> Tensor:
    """Attention to the encoder's output, and its output projection."""
    q = view(d.linear(layer, "cross_attn_q", x), (layer.head_k, layer.n_head, d.n))
    length = encoded.shape[1]
    k, v = (
        view(d.linear(layer, f"cross_attn_{name}", encoded), (size, layer.n_head_kv, length))
        for name, size in (("k", layer.head_k), ("v", layer.head_v))
    )
    for projection in (q, k, v):
        d.graph.expand(projection)
    q = permuted(view(q, (*q.shape[:3], 1), q.stride[1:]))
    k, v = permuted(k), permuted(v)
    if d.context.flash_on:
        halves = [fresh(part.shape, part, size=F16) for part in (k, v)]
        out = fresh((layer.head_v, layer.n_head, d.n), q, *halves, mask)
        out.layer = d.layer
        out = view(out, (layer.head_v * layer.n_head, d.n))
    else:
        scores = same(fresh((length, d.n, layer.n_head), k, q), mask)
        columns = fresh((length, layer.head_v, layer.n_head_kv), v)
        out = fresh((layer.head_v, d.n, layer.n_head), columns, scores)
        out = fresh((layer.head_v * layer.n_head, d.n), permuted(out))
        out.on_cpu = not d.context.kv_on_gpu
    d.graph.expand(out)
    return d.linear(layer, "cross_attn_o", out)
