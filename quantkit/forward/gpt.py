"""GPT-2 and those in its shape, BLOOM and Falcon: LayerNorm, linears with biases, no gate, names under `transformer.`.

Source: transformers 4.57, models/{gpt2,bloom,falcon}.
"""

from quantkit.forward.description import Architecture, Attention, FeedForward, Form, Norm, given
from quantkit.forward.settings import falcon_heads, falcon_variant, gpt2_scale

LAYER_NORM = Norm("layer")

BLOOM = Architecture(
    base="transformer.",
    embedding="word_embeddings",
    embedding_norm="word_embeddings_layernorm",
    layer="h.{}.",
    norm=LAYER_NORM,
    attention=Attention(
        at="self_attention.",
        fused="query_key_value",
        grouped=True,
        out="dense",
        alibi=lambda _: True,
    ),
    feed=FeedForward(
        gate=None,
        up="dense_h_to_4h",
        down="dense_4h_to_h",
        inner=lambda config: 4 * int(given(config, "hidden_size", "n_embed")),
        activation=(),
        default_activation="gelu_pytorch_tanh",
    ),
    last_norm="ln_f",
    tied=True,
    refused=lambda config: (
        "apply_residual_connection_post_layernorm" if config.get("apply_residual_connection_post_layernorm") else None
    ),
)
FALCON = Architecture(
    base="transformer.",
    embedding="word_embeddings",
    layer="h.{}.",
    norm=LAYER_NORM,
    feed_norm=None,
    parallel=True,
    attention=Attention(
        at="self_attention.", fused="query_key_value", grouped=True, out="dense", kv_heads=falcon_heads
    ),
    feed=FeedForward(
        gate=None,
        up="dense_h_to_4h",
        down="dense_4h_to_h",
        inner=lambda config: int(given(config, "ffn_hidden_size", default=4 * config["hidden_size"])),
        activation=("activation",),
        default_activation="gelu",
    ),
    last_norm="ln_f",
    tied=True,
    variant=falcon_variant,
    refused=lambda config: (
        "alibi" if config.get("alibi") else None if given(config, "parallel_attn", default=True) else "serial layers"
    ),
)
GPT2 = Architecture(
    base="transformer.",
    embedding="wte",
    positions="wpe",
    layer="h.{}.",
    norm=LAYER_NORM,
    attention_norm="ln_1",
    feed_norm="ln_2",
    attention=Attention(
        at="attn.",
        fused="c_attn",
        out="c_proj",
        form=Form(turned=True),
        rope=lambda _config, _layer: None,
        scale=gpt2_scale,
    ),
    feed=FeedForward(
        gate=None,
        up="c_fc",
        down="c_proj",
        form=Form(turned=True),
        inner=lambda config: int(given(config, "n_inner", default=4 * given(config, "n_embd", "hidden_size"))),
        activation=("activation_function",),
        default_activation="gelu_new",
    ),
    last_norm="ln_f",
    tied=True,
)
