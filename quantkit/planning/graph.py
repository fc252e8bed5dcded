"""The largest graph llama.cpp reserves for a model: one physical batch of a prompt, every token with an output.

Follows llm_graph_context and the graphs of src/models in llama.cpp. A model's tensors show which branches it takes, and
its family's traits do where tensors do not show it.
"""

from collections.abc import Callable, Hashable, Sequence

from quantkit.families import Traits
from quantkit.planning.altup import altup_layer, merged, spread
from quantkit.planning.attention import attention, mla
from quantkit.planning.blocks import block_attention
from quantkit.planning.compressed import CompressedInputs, compressed_layer, joined_streams, spread_streams
from quantkit.planning.context import Context
from quantkit.planning.delta_net import delta_net
from quantkit.planning.drawing import Drawing
from quantkit.planning.encoder import encoder_graph
from quantkit.planning.encoder_decoder import decoder_layers
from quantkit.planning.feed_forward import experts_beside_dense, feed_forward
from quantkit.planning.independent_streams import independent_layer, joined_independent
from quantkit.planning.kimi_delta import kimi_delta
from quantkit.planning.layer_inputs import layer_inputs, with_layer_input
from quantkit.planning.recurrent import mamba, mamba2
from quantkit.planning.residual_attention import residual_layers
from quantkit.planning.shape import Layer, ModelShape
from quantkit.planning.short_convolution import short_convolution
from quantkit.planning.tensors import Graph, Tensor, fresh, leaf, matmul, same
from quantkit.planning.time_mix import rwkv_layer

_TELLING = 4
Draw = Callable[[Drawing, Tensor, Layer], Tensor]


def prompt_graph(shape: ModelShape, context: Context, layers: Sequence[int] | None = None) -> Graph:
    """The graph of a whole physical batch; `layers` limits it to some layers, which must include the last."""
    if shape.traits.encoder:
        return encoder_graph(shape, context.one_batch, layers)
    d = Drawing(shape, context)
    x = _embedded(d)
    if "per_layer_token_embd.weight" in shape.tensors:
        d.layer_inputs = layer_inputs(d, x)
    if "dec.output_norm.weight" in shape.tensors:
        return _ended(d, d.norm(decoder_layers(d, x), "dec.output_norm", shape.tensors))
    if "output_res_score.weight" in shape.tensors:
        x = residual_layers(d, x, range(len(shape.trunk)) if layers is None else layers)
        return _ended(d, d.norm(x, shape.traits.last_norm, shape.tensors))
    has_streams = "altup_proj.weight" in shape.tensors
    x = spread(d, x) if has_streams else x
    draw_layer: Callable[[Drawing, Tensor, Layer, int], Tensor] = altup_layer if has_streams else _decoder_layer
    if shape.traits.compressed:
        d.compressed = CompressedInputs(d)
        d.graph.expand(d.caches[True].mask)
        x, draw_layer = spread_streams(d, x), compressed_layer
    elif shape.traits.independent_streams:
        x, draw_layer = spread_streams(d, x), independent_layer
    for number in range(len(shape.trunk)) if layers is None else layers:
        d.layer = number
        x = draw_layer(d, x, shape.layers[number], number)
        if _ends_loop(shape, number):
            d.layer = None
            x = d.norm(x, shape.traits.last_norm, shape.tensors)
        if number < shape.n_deepstack:
            x = same(x, d.embedding_part(number + 1))
    d.layer = None
    x = merged(d, x) if has_streams else x
    x = joined_streams(d, x) if shape.traits.compressed else x
    x = joined_independent(d, x) if shape.traits.independent_streams else x
    if shape.traits.output_last:
        # the last layer's result is offered to a draft model
        x.kept = True
        x = fresh((shape.n_embd, d.n), x, d.outputs)
    x = d.norm(x, shape.traits.last_norm, shape.tensors)
    return _ended(d, x)


def _ends_loop(shape: ModelShape, number: int) -> bool:
    """Whether a norm follows a layer because all layers run again after it."""
    again = (number + 1) % shape.n_stored == 0 and number + 1 < shape.n_layer
    return again and not shape.keys.get("skip_loop_final_norm")


def _ended(d: Drawing, x: Tensor) -> Graph:
    """The graph with the head after the normed hidden states x."""
    shape = d.shape
    x.kept = True
    if shape.traits.output_after_norm:
        x = fresh((shape.n_embd, d.n), x, d.outputs)
        x.kept = True
    if shape.traits.scaled_parts:
        x = same(x)
    x = matmul("output.weight", shape.n_vocab, x)
    if shape.number("logit_scale"):
        x = same(x)
    if shape.number("final_logit_softcapping"):
        x = same(same(same(x)))
    x.kept = True
    d.graph.expand(x)
    return d.graph


def telling_layers(shape: ModelShape, kinds: Sequence[Hashable]) -> list[int]:
    """Layers that are enough to compute the memory of all: four of each run of equal layers, which reuse freed memory.

    `kinds`: device placement per layer; layers of different kinds are not equal.
    """
    if shape.index_width or "output_res_score.weight" in shape.tensors:
        # each layer has its own mask of zeros, allocated from the start, or reads the states of all before it
        return list(range(len(shape.trunk)))
    chosen, run = [], 0
    before: Hashable = None
    for i, layer in enumerate(shape.trunk):
        sizes = (layer.n_head, layer.n_head_kv, layer.head_k, layer.head_v, layer.slides, layer.shared_from)
        sign = (sizes, tuple(layer.tensors.items()), kinds[i])
        run = run + 1 if sign == before else 1
        before = sign
        if run <= _TELLING or i == len(shape.trunk) - 1:
            chosen.append(i)
    return chosen


def _embedded(d: Drawing) -> Tensor:
    """The token embeddings that enter the first layer."""
    width = d.shape.n_embd * (1 + d.shape.n_deepstack)
    vectors = leaf("embeddings", width, d.n)
    x = d.graph.expand(_rows(d, "token_embd.weight", d.tokens))
    if d.shape.n_deepstack:
        # a token's embedding is padded to the width of an image's
        d.embedding = d.graph.expand(fresh((width, d.n), x))
        x = d.embedding_part(0)
    # the graph reserves an input for embeddings in place of tokens
    d.graph.expand(vectors)
    if d.shape.traits.scaled_embedding or d.shape.number("embedding_scale"):
        x = same(x)
    if "position_embd.weight" in d.shape.tensors:
        x = same(x, _rows(d, "position_embd.weight", d.positions))
    if "token_embd_norm.weight" in d.shape.tensors and d.shape.traits.last_norm != "token_embd_norm":
        x = d.norm(x, "token_embd_norm", d.shape.tensors)
    return x


def _rows(d: Drawing, weight: str, ids: Tensor) -> Tensor:
    out = fresh((d.shape.n_embd, d.n), ids)
    out.weight = weight
    return out


def _decoder_layer(d: Drawing, x: Tensor, layer: Layer, number: int) -> Tensor:
    shape, traits = d.shape, d.shape.traits
    if layer.has_time_mix:
        return rwkv_layer(d, x, layer, number, d.first_values)
    if layer.is_recurrent and layer.has_attention:
        return _side_by_side(d, x, layer, number)
    if not layer.tensors:
        return x
    if layer.has_one_part:
        return _one_part(d, x, layer, number)
    before = d.norm(x, "attn_norm", layer.tensors) if layer.has("attn_norm.weight") or traits.unweighted_norms else x
    attended = before
    if layer.has("attn_norm_2.weight"):
        attended = d.norm(x, "attn_norm_2", layer.tensors)
    draw: Draw = mla if layer.has("attn_kv_a_mqa.weight") else attention
    if layer.has("indexer.q_proj.weight") and d.context.flash_on:
        draw = block_attention
    if layer.is_recurrent:
        draw = _recurrent(layer, traits)
    elif layer.has_one_linear:
        draw = _one_linear
    out = draw(d, attended, layer)
    logits = d.linear(layer, "ffn_gate_inp", x) if traits.early_router else None
    if _drops_rows(shape, number):
        out = fresh((out.shape[0], d.n), out, d.outputs)
        x = fresh((x.shape[0], d.n), x, d.outputs)
        if logits is not None:
            logits = fresh((logits.shape[0], d.n), logits, d.outputs)
        if traits.parallel:
            before = fresh((before.shape[0], d.n), before, d.outputs)
    scaled = traits.scaled_parts or bool(shape.number("residual_scale"))
    if layer.has_norm("post_attention_norm") and traits.feed_norm != "post_attention_norm":
        out = d.norm(out, "post_attention_norm", layer.tensors)
    parallel = traits.parallel or (traits.parallel_without_feed_norm and not layer.has("ffn_norm.weight"))
    if parallel:
        fed = feed_forward(d, before, layer)
        return same(same(out, fed) if traits.attention_first else same(fed, out), x)
    if shape.number("use_parallel_residual") and layer.has("ffn_norm.weight"):
        # GPT-NeoX: each part has a separate norm over the same hidden states
        fed = feed_forward(d, d.norm(x, "ffn_norm", layer.tensors), layer)
        return same(same(fed, x), out)
    joined = _joined(d, same(out) if scaled else out, x)
    if layer.has("pre_ffw_norm_2.weight"):
        out = experts_beside_dense(d, joined, layer)
    else:
        out = feed_forward(d, _normed(d, joined, layer), layer, logits)
    if layer.has_norm("post_ffw_norm"):
        out = d.norm(out, "post_ffw_norm", layer.tensors)
    out = _joined(d, same(out) if scaled else out, joined)
    if d.layer_inputs is not None:
        out = with_layer_input(d, out, layer, number)
    return same(out, weight=d.named("layer_output_scale.weight")) if layer.has("layer_output_scale.weight") else out


def _drops_rows(shape: ModelShape, number: int) -> bool:
    """Whether a layer drops the rows without an output before its parts are joined."""
    last = number == len(shape.trunk) - 1
    return last and not shape.traits.output_last and not shape.traits.output_after_norm


def _recurrent(layer: Layer, traits: Traits) -> Draw:
    """What a layer with a state computes."""
    if layer.has_short_convolution:
        return short_convolution
    if layer.has_kimi_delta:
        return kimi_delta
    return mamba if traits.mamba else mamba2 if traits.mamba2 else delta_net


def _side_by_side(d: Drawing, x: Tensor, layer: Layer, number: int) -> Tensor:
    """A layer with attention and Mamba 2 of the same hidden states, each after the norm (src/models/falcon-h1.cpp)."""
    attended = attention(d, d.norm(x, "attn_norm", layer.tensors), layer)
    out = mamba2(d, d.norm(x, "attn_norm", layer.tensors), layer)
    x = same(same(attended, out), x)
    if number == len(d.shape.trunk) - 1:
        x = fresh((x.shape[0], d.n), x, d.outputs)
    return same(feed_forward(d, _normed(d, x, layer), layer), x)


def _one_linear(d: Drawing, x: Tensor, layer: Layer) -> Tensor:
    return d.linear(layer, "attn_output", x)


def _one_part(d: Drawing, x: Tensor, layer: Layer, number: int) -> Tensor:
    """A layer of one part (src/models/nemotron-h.cpp, deci.cpp)."""
    draw = (
        _recurrent(layer, d.shape.traits) if layer.is_recurrent else attention if layer.has_attention else feed_forward
    )
    # Nemotron-H calls the norm of every part attn_norm
    norm = "attn_norm" if layer.has("attn_norm.weight") else d.shape.traits.feed_norm
    if _drops_rows(d.shape, number) and norm != "attn_norm":
        x = fresh((x.shape[0], d.n), x, d.outputs)
        return same(draw(d, d.norm(x, norm, layer.tensors), layer), x)
    out = draw(d, d.norm(x, norm, layer.tensors), layer)
    if _drops_rows(d.shape, number):
        out, x = (fresh((part.shape[0], d.n), part, d.outputs) for part in (out, x))
    return same(out, x)


def _normed(d: Drawing, x: Tensor, layer: Layer) -> Tensor:
    """The input of the feed-forward."""
    traits = d.shape.traits
    has_norm = layer.has_norm(traits.feed_norm) or traits.unweighted_norms
    return d.norm(x, traits.feed_norm, layer.tensors) if has_norm else x


def _joined(d: Drawing, part: Tensor, x: Tensor) -> Tensor:
    """The sum of the hidden states and a layer's part."""
    return same(x, part) if d.shape.traits.residual_first else same(part, x)
