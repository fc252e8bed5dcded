"""Muse Glimmer, its text model: gated attention, norms before and after each part, positions in layers with a window.

Shape of the GGUF: llama.cpp's `muse-glimmer` architecture (src/models/muse-glimmer.cpp). Norms of queries and keys
have no weight in the checkpoint; llama.cpp's converter writes one that holds the queries' factor.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import UnsupportedError
from quantkit.families.base.family import Computed, Dropped, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.layer_kinds import layer_kinds
from quantkit.families.base.multimodal import TEXT_PREFIXES, TOWERS_LEFT_OUT
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.traits import Traits
from quantkit.families.gemma import norm
from quantkit.families.llama import ATTENTION, ENDS
from quantkit.families.qwen2 import PLAIN_MLP
from quantkit.forward.config_keys import Config, by_head_dim, given
from quantkit.forward.description import Architecture
from quantkit.forward.mixers import Attention
from quantkit.forward.parts import Norm
from quantkit.forward.settings import HEAD_NORMS, number_of
from quantkit.tokenizer.roles import TokenRoles

_NAME, _FAMILY = "MuseGlimmerForConditionalGeneration", "Muse Glimmer"
_AT, _TO = "model.layers.{layer}", "blk.{layer}"
# llama.cpp's constant for the norms after attention and after the feed-forward
_POST_EPS = 1e-8
_FULL_EVERY = 4
_KINDS = ("sliding_attention", "full_attention")

RULES = (
    norm("input_layernorm", "attn_norm"),
    norm("post_attention_layernorm", "post_attention_norm"),
    norm("pre_feedforward_layernorm", "ffn_norm"),
    norm("post_feedforward_layernorm", "post_ffw_norm"),
    *(rule for rule in ATTENTION if rule.source.endswith("_proj.weight")),
    Rule(f"{_AT}.self_attn.gate_proj.weight", f"{_TO}.attn_gate.weight", ("q", "hidden")),
    *PLAIN_MLP,
    *ENDS,
)

# transformers' MuseGlimmerTextConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "muse_glimmer_text": {
        "attention_bias": False,
        "final_logit_softcapping": 20.0,
        "head_dim": 128,
        "hidden_activation": "silu",
        "hidden_size": 6656,
        "intermediate_size": 19968,
        "max_position_embeddings": 131072,
        "num_attention_heads": 32,
        "num_hidden_layers": 52,
        "num_key_value_heads": 2,
        "output_multiplier": 0.19611613513818404,
        "post_norm_eps": _POST_EPS,
        "qk_scale_factor": 3.87,
        "rms_norm_eps": 1e-5,
        "sliding_window": 2048,
        "tie_word_embeddings": False,
        "vocab_size": 202048,
    }
}


def _slides(config: Config, layer: int) -> bool:
    """Whether a layer has a window; without `layer_types` one of four has none, counted from the last."""
    kinds = config.get("layer_types")
    return bool(
        kinds[layer] == "sliding_attention" if kinds else (int(config["num_hidden_layers"]) - 1 - layer) % _FULL_EVERY
    )


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph does not have.

    Raises:
        UnsupportedError: layers with positions are not those with a window.
    """
    n_layer = size(config, "num_hidden_layers")
    only(config, "hidden_activation", *SILU, family=_FAMILY)
    only(config, "attention_bias", False, family=_FAMILY)
    only(config, "tie_word_embeddings", False, family=_FAMILY)
    only(config, "post_norm_eps", _POST_EPS, family=_FAMILY)
    kinds = layer_kinds(config, n_layer, _KINDS)
    slides = [_slides(config, layer) for layer in range(n_layer)]
    config["layer_types"] = kinds or [_KINDS[not window] for window in slides]
    thetas = config.get("layer_rope_theta")
    if thetas is not None and [bool(theta) for theta in thetas] != slides:
        raise UnsupportedError(
            f"config.json: layer_rope_theta is {thetas!r}, but llama.cpp rotates positions in layers with a window and"
            " in no others; a GGUF cannot express this setting"
        )
    return config


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/muse_glimmer.py)."""
    config = sizes.config
    return [
        *base_keys(arch, sizes),
        Key(f"{arch}.final_logit_softcapping", "f32", number(config, "final_logit_softcapping")),
        Key(f"{arch}.logit_scale", "f32", number(config, "output_multiplier")),
        Key(f"{arch}.attention.sliding_window", "u32", size(config, "sliding_window")),
        Key(
            f"{arch}.attention.sliding_window_pattern",
            "bools",
            [kind == "sliding_attention" for kind in config["layer_types"]],
        ),
    ]


def _query_norm(sizes: Hyperparameters) -> NDArray[np.float32]:
    return np.full(sizes.head_dim, number(sizes.config, "qk_scale_factor"), np.float32)


def _key_norm(sizes: Hyperparameters) -> NDArray[np.float32]:
    return np.ones(sizes.head_dim, np.float32)


def _query_scale(config: Config, layer: int) -> float:
    return by_head_dim(config, layer) * float(given(config, "qk_scale_factor", default=3.87))


_CENTERED, _AFTER, _PLAIN = Norm(offset=1.0), Norm(offset=1.0, eps=_POST_EPS), Norm(weighted=False)
FORWARD = Architecture(
    norm=_CENTERED,
    embedding_norm="embed_norm",
    embedding_norm_kind=_PLAIN,
    after_attention="post_attention_layernorm",
    feed_norm="pre_feedforward_layernorm",
    after_feed="post_feedforward_layernorm",
    norms_after=(_AFTER, _AFTER),
    last_norm_kind=Norm(),
    attention=Attention(
        norms=HEAD_NORMS,
        norm=_PLAIN,
        gate="gate_proj",
        scale=_query_scale,
        rope=lambda config, layer: config if _slides(config, layer) else None,
        window=lambda config, layer: config.get("sliding_window") if _slides(config, layer) else None,
    ),
    logit_scale=number_of("output_multiplier", 0.19611613513818404),
    logit_softcap="final_logit_softcapping",
    unpacked=lambda _: "transformers has no class for Muse Glimmer's text model alone",
)

FAMILY = Family(
    name=_FAMILY,
    models="Muse Glimmer 30B (text only)",
    architectures=(_NAME,),
    gguf_arch="muse-glimmer",
    rules=RULES,
    keys=_keys,
    computed=(
        Computed(f"{_TO}.attn_q_norm.weight", _query_norm),
        Computed(f"{_TO}.attn_k_norm.weight", _key_norm),
    ),
    defaults=DEFAULTS,
    prepare=_prepare,
    text_models={_NAME: (_NAME, "muse_glimmer_text")},
    rename=TEXT_PREFIXES,
    dropped=(Dropped(r"(model\.)?(vision_tower|vision_adapter|vision_projection)\..*", TOWERS_LEFT_OUT),),
    rope_kinds=("default",),
    # of the tower and its projector
    no_effect=("out_hidden_size", "projector_hidden_size"),
    forward={_NAME: FORWARD},
    traits=Traits(sliding_every=_FULL_EVERY, unweighted_norms=True, rope_in_windows=True),
    token_roles=TokenRoles(also={"eot": "<|eot|>"}),
)
