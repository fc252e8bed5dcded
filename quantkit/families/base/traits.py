"""Properties of a GGUF architecture's graph that the memory plan needs and that tensors and keys do not show."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Traits:
    """How llama.cpp's graph of one GGUF architecture differs from Llama's (llama.cpp, src/models).

    Attributes:
        causal: tokens attend to earlier ones only; False for encoders whose files do not state it.
        plannable: quantkit knows the graph; False for most recurrent models and some encoders.
        encoder: the graph is an encoder's, without a cache; tensors show where its norms are.
        unused_cache: llama.cpp makes a cache for the encoder, which does not use it.
        sliding_every: layers with a sliding window have a smaller cache; one layer in this many has no window.
        full_first: of these layers the first has no window, not the last.
        default_window: tokens of the window where the file has no key for it.
        layer_norm: norms are LayerNorms, which llama.cpp never computes in place; elsewhere RMS norms.
        unweighted_norms: norms have no weight, so no tensor shows them.
        positions: where positions come from; "stated" means that keys or tensors of the file show it, "none" that
            attention has none beside other kinds of layers.
        rope_layers: only models of this many layers have rotary positions; None means all.
        rope_in_windows: layers without a window have no rotary positions, apart from the first, dense ones; in a model
            without windows all have.
        parallel: attention and feed-forward start from the same norm.
        parallel_without_feed_norm: the same, in layers without a norm for the feed-forward.
        attention_first: if both parts start from the same norm, attention's output projection precedes the
            feed-forward. So it takes memory beside it.
        feed_norm: the tensor that norms the input of the feed-forward.
        scaled_query: queries are scaled in a separate operation.
        scaled_embedding: embeddings are scaled although no key shows it.
        scaled_parts: the output of each part and the last hidden states are scaled although no key shows it.
        output_last: rows without an output are dropped after the last layer, not within it.
        output_after_norm: they are dropped after the last norm.
        delta_net: layers with a convolution have Gated DeltaNet in place of attention.
        kimi_delta: layers with three convolutions have Kimi Delta Attention in place of attention.
        mamba: layers with a convolution have Mamba in place of attention.
        mamba2: layers with a convolution have Mamba 2 in place of attention.
        compressed: attention has compressed tokens, layers mix several streams (DeepSeek-V4).
        independent_streams: layers have several streams, which they do not mix (Hunyuan 4).
        relative_positions: attention has tables of biases by distance.
        layer_prefix: what precedes `blk.` in the names of the layers that the plan draws.
        time_mix: layers have RWKV's time mixing and channel mixing.
        gated_attention: queries come with a gate for the output of attention.
        sigmoid_shared_gate: the gate of the shared expert is one operation, not SiLU and a division.
        expert_weights_summed_to_one: the weights of the chosen experts are normalised.
        softmax_of_chosen: the router's softmax is over the chosen experts only.
        weighted_input: the router's weights scale the input of the experts instead of their output.
        early_router: the router reads the hidden states that enter the layer.
        late_queries: queries of layers without a window are scaled by their position.
        sparse_layers: the first layers in this number set small activations to zero.
        normed_values: values pass an RMS norm without a weight.
        residual_first: the hidden states are the first operand of a sum with a layer's part, not the second.
        last_norm: the tensor that norms the last layer's output.
        later_tokens_cached: layers that predict a later token have a cache although nothing drafts.
    """

    causal: bool = True
    plannable: bool = True
    encoder: bool = False
    unused_cache: bool = False
    sliding_every: int | None = None
    full_first: bool = False
    default_window: int = 0
    layer_norm: bool = False
    unweighted_norms: bool = False
    positions: Literal["rope", "alibi", "learned", "stated", "none"] = "rope"
    rope_layers: int | None = None
    rope_in_windows: bool = False
    parallel: bool = False
    parallel_without_feed_norm: bool = False
    attention_first: bool = False
    feed_norm: Literal["ffn_norm", "post_attention_norm", "attn_output_norm"] = "ffn_norm"
    scaled_query: bool = False
    scaled_embedding: bool = False
    scaled_parts: bool = False
    output_last: bool = False
    output_after_norm: bool = False
    delta_net: bool = False
    kimi_delta: bool = False
    mamba: bool = False
    mamba2: bool = False
    compressed: bool = False
    independent_streams: bool = False
    relative_positions: bool = False
    layer_prefix: Literal["", "enc.", "dec."] = ""
    time_mix: bool = False
    gated_attention: bool = False
    sigmoid_shared_gate: bool = False
    expert_weights_summed_to_one: bool = True
    softmax_of_chosen: bool = False
    weighted_input: bool = False
    early_router: bool = False
    late_queries: bool = False
    sparse_layers: int = 0
    normed_values: bool = False
    residual_first: bool = False
    last_norm: Literal["output_norm", "token_embd_norm"] = "output_norm"
    later_tokens_cached: bool = False

    def has_rope(self, n_layer: int) -> bool:
        """Whether a model of `n_layer` layers has rotary positions."""
        return self.positions == "rope" and self.rope_layers in (None, n_layer)


LLAMA_TRAITS = Traits()
