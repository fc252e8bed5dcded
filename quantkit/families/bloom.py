"""BLOOM and its derivatives BLOOMZ, Huozi 1 and 2: ALiBi, no rotary settings, a norm after the embedding.

Shape of the GGUF: llama.cpp's `bloom` architecture (src/models/bloom.cpp), whose attention is GPT-2's: all queries,
then all keys, then all values. A checkpoint stores query, key and value of each head next to each other.
"""

from typing import Any

import numpy as np

from quantkit.families.base.family import Family, Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.refusals import only
from quantkit.families.base.traits import Traits
from quantkit.forward.config_keys import given
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import LAYER_NORM


def _by_role(sizes: Hyperparameters) -> Take:
    """Rows (head, role, value) in the order (role, head, value); biases likewise."""
    rows = np.arange(3 * sizes.hidden, dtype=np.int64).reshape(sizes.n_head, 3, -1)
    return Take(rows.swapaxes(0, 1).reshape(-1))


_H = "transformer.h.{layer}"
_NORMS = (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"))
_LINEARS = (
    ("self_attention.query_key_value", "attn_qkv", ("qkv", "hidden"), _by_role),
    ("self_attention.dense", "attn_output", ("hidden", "hidden"), None),
    ("mlp.dense_h_to_4h", "ffn_up", ("ffn", "hidden"), None),
    ("mlp.dense_4h_to_h", "ffn_down", ("hidden", "ffn"), None),
)

RULES = (
    Rule("transformer.word_embeddings.weight", "token_embd.weight", ("vocab", "hidden")),
    *(
        Rule(f"{source}.{kind}", f"{target}.{kind}", ("hidden",))
        for source, target in (
            ("transformer.word_embeddings_layernorm", "token_embd_norm"),
            *((f"{_H}.{source}", f"blk.{{layer}}.{target}") for source, target in _NORMS),
            ("transformer.ln_f", "output_norm"),
        )
        for kind in ("weight", "bias")
    ),
    *(
        Rule(
            f"{_H}.{source}.{kind}",
            f"blk.{{layer}}.{target}.{kind}",
            shape if kind == "weight" else shape[:1],
            take=take,
        )
        for source, target, shape, take in _LINEARS
        for kind in ("weight", "bias")
    ),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), required=False, tied_to_embedding=True),
)


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Rename BLOOM's settings (n_embed, n_layer, n_head, seq_length); the feed-forward is four times the width.

    Without seq_length the context is the width, as in llama.cpp's converter.
    """
    only(config, "apply_residual_connection_post_layernorm", False, family="BLOOM")
    hidden = size(config, "n_embed", "hidden_size")
    heads = size(config, "num_attention_heads", "n_head")
    layers = size(config, "num_hidden_layers", "n_layer")
    return {
        **config,
        "architectures": ["BloomForCausalLM"],
        "hidden_size": hidden,
        "n_head": heads,
        "n_layer": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "num_hidden_layers": layers,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": optional_size(config, "seq_length") or hidden,
    }


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/bloom.py)."""
    return [
        Key(f"{arch}.context_length", "u32", sizes.context),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.attention.head_count", "u32", sizes.n_head),
        Key(f"{arch}.attention.head_count_kv", "u32", sizes.n_head),
        Key(f"{arch}.attention.layer_norm_epsilon", "f32", number(sizes.config, "layer_norm_epsilon") or 1e-5),
    ]


FORWARD = Architecture(
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

FAMILY = Family(
    name="BLOOM",
    models="BLOOM, BLOOMZ, Huozi 1/2",
    architectures=("BloomForCausalLM", "BloomModel"),
    gguf_arch="bloom",
    rules=RULES,
    keys=keys,
    # transformers' BloomConfig
    defaults={"bloom": {"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}},
    prepare=prepare,
    rename=((r"^(?!transformer\.|lm_head\.)", "transformer."),),
    dimensions=lambda sizes: {"qkv": 3 * sizes.hidden},
    no_effect=("slow_but_exact",),
    forward={"BloomForCausalLM": FORWARD},
    traits=Traits(layer_norm=True, positions="alibi"),
)
