"""Step 3.5 and 3.7 Flash: a gate for each head, more heads in layers with a window, experts with limits.

Shape of the GGUF: llama.cpp's `step35` architecture (src/models/step35.cpp). Layers without a window rotate half of a
head, those with one all of it. Layers that predict a later token (MTP) follow the model's own.
"""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from quantkit.families.base.adjust import plus_one
from quantkit.families.base.experts import expert_dimensions, expert_width, shared_rules
from quantkit.families.base.family import Computed, Dropped, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.layers import nextn_rules, observe_nextn
from quantkit.families.base.multimodal import TOWERS, TOWERS_LEFT_OUT
from quantkit.families.base.traits import Traits
from quantkit.families.gemma import norm
from quantkit.families.llama import ENDS, rope_frequencies
from quantkit.families.qwen2 import PLAIN_MLP, PROJECTIONS
from quantkit.families.step35_config import (
    FULL,
    NAME,
    ROTATED,
    is_routed,
    key_heads,
    kind_of,
    limits_of,
    prepare,
    query_heads,
    slides,
)
from quantkit.forward.config_keys import Config
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.parts import Norm
from quantkit.forward.settings import HEAD_NORMS, number_of, size_of

_TEXT, _WITH_IMAGES = "Step3p5ForCausalLM", "Step3p7ForConditionalGeneration"
_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_FULL_EVERY = 4


def _dense(sizes: Hyperparameters) -> list[int]:
    return [layer for layer in range(sizes.n_layer) if not is_routed(sizes.config, layer)]


def _routed(sizes: Hyperparameters) -> list[int]:
    return [layer for layer in range(sizes.n_layer) if is_routed(sizes.config, layer)]


_STACK = ("n_expert", "expert_ffn", "hidden")
_LAYER = (
    norm("input_layernorm", "attn_norm"),
    *PROJECTIONS,
    norm("self_attn.q_norm", "attn_q_norm", "head_dim"),
    norm("self_attn.k_norm", "attn_k_norm", "head_dim"),
    Rule(f"{_AT}.self_attn.g_proj.weight", f"{_TO}.attn_gate.weight", ("gate", "hidden")),
    norm("post_attention_layernorm", "ffn_norm"),
)
_MTP = tuple(
    replace(
        rule,
        source=rule.source.replace(".shared_head.head.", ".transformer.shared_head.output.").replace(
            ".shared_head.norm.", ".transformer.shared_head.norm."
        ),
        adjust=plus_one if rule.source.endswith("norm.weight") else None,
    )
    for rule in nextn_rules((*_LAYER, *PLAIN_MLP))
)
RULES = (
    *_LAYER,
    *(replace(rule, layers=_dense) for rule in PLAIN_MLP),
    Rule(f"{_AT}.moe.gate.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden"), layers=_routed),
    Rule(f"{_AT}.moe.router_bias", f"{_TO}.exp_probs_b.bias", ("n_expert",), layers=_routed),
    Rule(f"{_AT}.moe.gate_proj.weight", f"{_TO}.ffn_gate_exps.weight", _STACK, layers=_routed),
    Rule(f"{_AT}.moe.up_proj.weight", f"{_TO}.ffn_up_exps.weight", _STACK, layers=_routed),
    Rule(
        f"{_AT}.moe.down_proj.weight",
        f"{_TO}.ffn_down_exps.weight",
        ("n_expert", "hidden", "expert_ffn"),
        layers=_routed,
    ),
    *shared_rules(f"{_AT}.share_expert", layers=_routed),
    *_MTP,
    *(replace(rule, adjust=plus_one) if rule.target == "output_norm.weight" else rule for rule in ENDS),
)


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/step3.py)."""
    config, layers = sizes.config, range(sizes.n_layer + sizes.n_draft)
    heads, kv_heads = f"{arch}.attention.head_count", f"{arch}.attention.head_count_kv"
    epsilon, stated = f"{arch}.attention.layer_norm_rms_epsilon", config.get("rms_norm_eps") is not None
    moved = (kv_heads, f"{arch}.expert_count", f"{arch}.expert_used_count", *([] if stated else [epsilon]))
    scale, routed = number(config, "moe_router_scaling_factor"), _routed(sizes)
    limits = [
        Key(f"{arch}.{key}", "f32s", limits_of(config, name, len(layers)))
        for key, name in (("swiglu_clamp_exp", "swiglu_limits"), ("swiglu_clamp_shexp", "swiglu_limits_shared"))
        if config.get(name) is not None
    ]
    return [
        *(
            Key(heads, "i32s", [query_heads(config, layer) for layer in layers]) if key.name == heads else key
            for key in base_keys(arch, sizes)
            if key.name not in moved
        ),
        Key(kv_heads, "i32s", [key_heads(config, layer) for layer in layers]),
        Key(f"{arch}.attention.sliding_window", "u32", size(config, "sliding_window")),
        Key(f"{arch}.attention.sliding_window_pattern", "bools", [slides(config, layer) for layer in layers]),
        Key(f"{arch}.expert_count", "u32", sizes.n_expert),
        Key(f"{arch}.expert_used_count", "u32", sizes.n_expert_used),
        Key(f"{arch}.expert_feed_forward_length", "u32", expert_width(sizes)),
        Key(f"{arch}.expert_shared_feed_forward_length", "u32", size(config, "share_expert_dim")),
        *([Key(f"{arch}.expert_weights_scale", "f32", scale)] if scale is not None else []),
        # without the key llama.cpp does not scale the weights to a sum of one
        Key(f"{arch}.expert_weights_norm", "bool", True),
        Key(f"{arch}.leading_dense_block_count", "u32", routed[0] if routed else 0),
        Key(f"{arch}.moe_every_n_layers", "u32", 1),
        *([] if stated else [Key(epsilon, "f32", sizes.norm_eps)]),
        *limits,
        *([Key(f"{arch}.nextn_predict_layers", "u32", sizes.n_draft)] if sizes.n_draft else []),
    ]


def _factors(sizes: Hyperparameters) -> NDArray[np.float32] | None:
    """Llama 3's divisors of the half of a head that turns in layers without a window, then ones: (head_dim / 2,).

    None without that scaling. The converter computes them in float64 here, of frequencies in float32.
    """
    rope = sizes.rope
    if rope["rope_type"] != "llama3":
        return None
    low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
    original, factor = rope.get("original_max_position_embeddings", 8192), rope["factor"]
    rotated = rope_frequencies(rope["rope_theta"], int(sizes.head_dim * ROTATED[FULL])).astype(np.float64)
    wavelength = 2 * math.pi / rotated
    smooth = (original / wavelength - low) / (high - low)
    blend = 1 / ((1 - smooth) / factor + smooth)
    divisors = np.where(wavelength < original / high, 1.0, np.where(wavelength > original / low, factor, blend))
    return np.concatenate([divisors, np.ones(sizes.head_dim // 2 - len(divisors))]).astype(np.float32)


def _layer_dimensions(sizes: Hyperparameters, layer: int) -> dict[str, int]:
    heads = query_heads(sizes.config, layer)
    return {"q": heads * sizes.head_dim, "gate": heads, "kv": key_heads(sizes.config, layer) * sizes.head_dim}


def _per_layer(config: Config, layer: int) -> Config:
    kind = kind_of(config, layer)
    return {
        **config,
        "num_attention_heads": query_heads(config, layer),
        "num_key_value_heads": key_heads(config, layer),
        "rope_parameters": config["rope_parameters"][kind],
    }


FORWARD = Architecture(
    norm=Norm(offset=1.0),
    attention=Attention(
        norms=HEAD_NORMS,
        norm=Norm(offset=1.0),
        gate="g_proj",
        gate_per_head=lambda _: True,
        window=lambda config, layer: config.get("sliding_window") if slides(config, layer) else None,
    ),
    feed=FeedForward(limit=lambda config, layer: limits_of(config, "swiglu_limits_shared", layer + 1)[layer]),
    experts=Experts(
        router="moe.gate",
        stacked=FeedForward(
            at="moe.",
            inner=size_of("moe_intermediate_size"),
            limit=lambda config, layer: limits_of(config, "swiglu_limits", layer + 1)[layer],
        ),
        score="sigmoid",
        correction="moe.router_bias",
        scale=number_of("moe_router_scaling_factor"),
        shared=FeedForward(
            at="share_expert.",
            inner=size_of("share_expert_dim"),
            limit=lambda config, layer: limits_of(config, "swiglu_limits_shared", layer + 1)[layer],
        ),
        layers=is_routed,
    ),
    per_layer=_per_layer,
    unpacked=lambda _: "transformers has no class for Step 3.5's text model alone",
)

FAMILY = Family(
    name=NAME,
    models="Step 3.5 Flash, Step 3.7 Flash (text only)",
    architectures=(_TEXT, _WITH_IMAGES),
    gguf_arch="step35",
    rules=RULES,
    keys=_keys,
    computed=(Computed("rope_freqs.weight", _factors),),
    observe=observe_nextn,
    prepare=prepare,
    text_models={_WITH_IMAGES: (_TEXT, "step3p5")},
    dropped=(Dropped(TOWERS, TOWERS_LEFT_OUT),),
    dimensions=lambda sizes: {
        **expert_dimensions(expert_width(sizes), size(sizes.config, "share_expert_dim")),
        "two_hidden": 2 * sizes.hidden,
    },
    layer_dimensions=_layer_dimensions,
    rope_kinds=("default", "llama3"),
    forward=FORWARD,
    traits=Traits(sliding_every=_FULL_EVERY, full_first=True),
)
