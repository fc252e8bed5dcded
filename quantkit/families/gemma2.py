"""Gemma 2: Gemma with four norms a layer, soft caps, and every other layer with a sliding window.

Shape of the GGUF: llama.cpp's `gemma2` architecture (src/models/gemma2.cpp).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families import gemma
from quantkit.families.base.family import Family, Key
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.refusals import GELU, only
from quantkit.families.base.sliding import pattern_keys, sliding_layers
from quantkit.families.base.traits import Traits
from quantkit.families.gemma import FORWARD as GEMMA_FORWARD
from quantkit.families.gemma import HEAD, MATRICES, gemma_keys, norm
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import query_scale, window
from quantkit.tokenizer.roles import SpacePrefix, TokenRoles

NORMS = (
    norm("input_layernorm", "attn_norm"),
    norm("post_attention_layernorm", "post_attention_norm"),
    norm("pre_feedforward_layernorm", "ffn_norm"),
    norm("post_feedforward_layernorm", "post_ffw_norm"),
)

# The window alternates, with the first layer sliding (llama.cpp's load_swa_pattern).
_PATTERN = 2
# llama.cpp recognises the 27B by its layer count, and scales its queries by the width over the heads.
_LAYERS_OF_27B = 46


def refuse_other_query_scale(config: Mapping[str, Any], layers_of_27b: int, family: str) -> None:
    """Refuse a query_pre_attn_scalar that differs from the value llama.cpp derives from the shape."""
    hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    wide = size(config, "num_hidden_layers") == layers_of_27b
    expected = hidden // heads if wide else size(config, "head_dim")
    scalar = number(config, "query_pre_attn_scalar")
    if scalar != expected:
        raise UnsupportedError(
            f"config.json: query_pre_attn_scalar is {scalar}, but llama.cpp takes {expected} for a {family} of this"
            f" shape ({'hidden_size / num_attention_heads' if wide else 'head_dim'}); a GGUF cannot hold another value"
        )


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse settings that differ from the constants of llama.cpp's graph."""
    only(config, "hidden_activation", *GELU, family="Gemma 2")
    only(config, "tie_word_embeddings", True, family="Gemma 2")
    only(config, "attention_bias", False, family="Gemma 2")
    only(config, "use_bidirectional_attention", False, family="Gemma 2")
    refuse_other_query_scale(config, _LAYERS_OF_27B, "Gemma 2")
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if not number(config, name):
            raise UnsupportedError(
                f"config.json: {name} is {config.get(name)!r}, but llama.cpp always caps Gemma 2's logits;"
                " a GGUF cannot express a model without the cap"
            )
    return config


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """Gemma's keys, the caps, and the window; its layers where they are not llama.cpp's own choice."""
    config = sizes.config
    return [
        *gemma_keys(arch, sizes),
        Key(f"{arch}.attn_logit_softcapping", "f32", number(config, "attn_logit_softcapping")),
        Key(f"{arch}.final_logit_softcapping", "f32", number(config, "final_logit_softcapping")),
        Key(f"{arch}.attention.sliding_window", "u32", size(config, "sliding_window")),
        *pattern_keys(arch, sliding_layers(config, sizes.n_layer, _PATTERN), _PATTERN),
    ]


# transformers' Gemma2Config.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma2": {
        **gemma.DEFAULTS["gemma"],
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    }
}

FORWARD = replace(
    GEMMA_FORWARD,
    after_attention="post_attention_layernorm",
    feed_norm="pre_feedforward_layernorm",
    after_feed="post_feedforward_layernorm",
    attention=Attention(
        scale=query_scale, softcap="attn_logit_softcapping", window=window(lambda _, layer: layer % 2 == 0)
    ),
    logit_softcap="final_logit_softcapping",
)

FAMILY = Family(
    name="Gemma 2",
    models="Gemma 2 2B/9B/27B",
    architectures=("Gemma2ForCausalLM",),
    gguf_arch="gemma2",
    rules=MATRICES + NORMS,
    keys=keys,
    defaults=DEFAULTS,
    prepare=prepare,
    dropped=(HEAD,),
    rope_kinds=("default",),
    forward=FORWARD,
    traits=Traits(sliding_every=2, default_window=4096, scaled_query=True, scaled_embedding=True),
    token_roles=TokenRoles(space_prefix=SpacePrefix.FALSE_LAST),
)
