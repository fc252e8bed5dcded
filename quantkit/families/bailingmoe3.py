"""Ling 3.0: Kimi Delta Attention, latent attention with a gate for each head, and groups of experts.

Shape of the GGUF: llama.cpp's `bailingmoe3` architecture (src/models/bailingmoe3.cpp). Layers that predict a later
token (MTP) follow the model's own. transformers has the class as BailingHybrid, without the limits of the experts.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.experts import expert_rules, expert_width, shared_rules
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.layer_kinds import layer_kinds
from quantkit.families.base.layers import nextn_rules, observe_nextn, routed_layers
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.traits import Traits
from quantkit.families.deepseek import ATTENTION, V3_FORWARD, matrix
from quantkit.families.kimi_linear import DENSE, ENDS, WITH_LATENT, attention_rules
from quantkit.families.kimi_linear import dimensions as kimi_dimensions
from quantkit.families.kimi_linear_config import has_delta
from quantkit.forward.config_keys import Config
from quantkit.forward.description import FeedForward
from quantkit.forward.kimi_parts import KimiDelta
from quantkit.forward.settings import size_of

_FAMILY = "Ling 3.0"
_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_ATTENTION, _MLP = f"{_AT}.self_attn", f"{_AT}.mlp"
_LIMITS = {"swiglu_clamp_exp": "expert_swiglu_limit_list", "swiglu_clamp_shexp": "share_expert_swiglu_limit_list"}


def _exp(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The decay rate from its logarithm, rounded once from float64."""
    return np.exp(rows.astype(np.float64)).astype(np.float32)


_DELTA = (
    matrix(f"{_ATTENTION}.f_proj", "ssm_f_a", "delta", "hidden"),
    matrix(f"{_ATTENTION}.g_proj", "ssm_g_a", "delta", "hidden"),
)
_DECAY = Rule(f"{_ATTENTION}.A_log", f"{_TO}.ssm_a", ("n_head",), adjust=_exp, reshaped=("n_head", "1"))
_GATE = matrix(f"{_ATTENTION}.g_proj", "attn_gate", "n_head", "hidden", layers=WITH_LATENT)
_ROUTED = (
    matrix(f"{_MLP}.gate", "ffn_gate_inp", "n_expert", "hidden", layers=routed_layers),
    Rule(f"{_MLP}.gate.expert_bias", f"{_TO}.exp_probs_b.bias", ("n_expert",), layers=routed_layers),
    *expert_rules(f"{_MLP}.experts", layers=routed_layers),
    *shared_rules(f"{_MLP}.shared_experts", layers=routed_layers),
)
_RULES = (
    *attention_rules(_DELTA, _DECAY),
    _GATE,
    *DENSE,
    *_ROUTED,
    *nextn_rules((*ATTENTION, _GATE, *_ROUTED, matrix(f"{_AT}.final_layernorm", "layer_output_norm", "hidden"))),
    *ENDS,
)


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph does not have; state which layers have Kimi Delta Attention.

    Raises:
        CheckpointError: a size or a setting is missing, or two settings or a list and its layers do not agree.
        UnsupportedError: a setting that llama.cpp does not run.
    """
    for name in ("attention_bias", "scale_router_input", "tie_word_embeddings", "up_proj_norm", "use_bias"):
        only(config, name, False, family=_FAMILY)
    for name in ("use_kda_lora", "use_mla_nope", "use_nGPT", "use_qkv_bias", "value_norm"):
        only(config, name, False, family=_FAMILY)
    _stated(config, "no_kda_lora", True)
    _stated(config, "kda_safe_gate", True)
    _stated(config, "gated_attention_proj_granularity_type", "head_wise")
    heads = size(config, "num_attention_heads")
    only(config, "num_key_value_heads", heads, family=_FAMILY)
    only(config, "num_kv_heads_for_linear_attn", 0, heads, family=_FAMILY)
    only(config, "group_norm_size", 1, family=_FAMILY)
    only(config, "hidden_act", *SILU, family=_FAMILY)
    only(config, "rope_interleave", True, family=_FAMILY)
    only(config, "topk_method", "noaux_tc", family=_FAMILY)
    only(config, "num_shared_experts", 1, family=_FAMILY)
    for name in ("score_function", "scoring_func"):
        only(config, name, "sigmoid", family=_FAMILY)
    for name in ("moe_intermediate_size", "moe_shared_expert_intermediate_size", "num_experts", "num_experts_per_tok"):
        size(config, name)
    if config["num_experts_per_tok"] > config["num_experts"]:
        raise CheckpointError(
            f"config.json: num_experts_per_tok {config['num_experts_per_tok']} is more than num_experts"
            f" {config['num_experts']}; correct it"
        )
    bound = number(config, "kda_lower_bound")
    if bound is None or bound >= 0:
        raise CheckpointError(f"config.json: kda_lower_bound must be less than zero, not {bound!r}; correct it")
    config |= {"score_function": "sigmoid", "num_key_value_heads": heads, "num_shared_experts": 1}
    config["linear_attn_config"] = _layers(config, heads)
    _check_limits(config)
    return config


def _stated(config: dict[str, Any], name: str, needed: object) -> None:
    """Refuse another value than `needed`, which config.json must state.

    Raises:
        CheckpointError: config.json does not state it.
        UnsupportedError: it has another value.
    """
    only(config, name, needed, family=_FAMILY)
    if config.get(name) is None:
        shown = "true" if needed is True else repr(needed)
        raise CheckpointError(f"config.json has no {name}; add it, it must be {shown}")


def _layers(config: dict[str, Any], heads: int) -> dict[str, Any]:
    """The layers of each kind as Kimi Linear's config.json has them, from 1: the last of a group has latent attention.

    So have layers after the last whole group.
    """
    n_layer, group = size(config, "num_hidden_layers"), size(config, "layer_group_size")
    latent = [layer for layer in range(n_layer) if (layer + 1) % group == 0 or layer >= n_layer // group * group]
    kinds = layer_kinds(config, n_layer, ("linear_attention", "full_attention"))
    if kinds is not None and [layer for layer, kind in enumerate(kinds) if kind == "full_attention"] != latent:
        raise CheckpointError(
            f"config.json: layer_types has other layers with full_attention than the last of {group} and those after"
            " the last whole group, which layer_group_size gives; correct one of them"
        )
    return {
        "full_attn_layers": [layer + 1 for layer in latent],
        "kda_layers": [layer + 1 for layer in range(n_layer) if layer not in latent],
        "head_dim": size(config, "head_dim"),
        "num_heads": heads,
        "short_conv_kernel_size": size(config, "short_conv_kernel_size"),
    }


def _check_limits(config: dict[str, Any]) -> None:
    for name in _LIMITS.values():
        limits = config.get(name)
        if limits is None:
            continue
        if not isinstance(limits, list):
            raise CheckpointError(f"config.json: {name} must be a list, not {limits!r}; correct it")
        for limit in limits:
            number({name: limit}, name)
    dense = int(number(config, "first_k_dense_replace") or 0)
    if any(_limits(config, "share_expert_swiglu_limit_list", dense)):
        raise UnsupportedError(
            "config.json: share_expert_swiglu_limit_list has a limit for a dense layer, which has no shared expert, but"
            " llama.cpp would apply it there; set it to 0"
        )


def _limits(config: Config, name: str, layers: int) -> list[float]:
    """The limit of each layer, 0 for none."""
    stated = [float(limit or 0) for limit in config.get(name) or ()]
    return [*stated, *[0.0] * layers][:layers]


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    shared = size(sizes.config, "moe_shared_expert_intermediate_size")
    return {**kimi_dimensions(sizes), "shared_ffn": shared, "two_hidden": 2 * sizes.hidden}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The common keys, then those of both kinds of attention and of the experts, in the converter's order."""
    config, layers = sizes.config, sizes.n_layer + sizes.n_draft
    rope, latent = size(config, "qk_rope_head_dim"), size(config, "kv_lora_rank")
    heads, key_length = f"{arch}.attention.head_count_kv", f"{arch}.attention.key_length"
    with_cache = [int(layer >= sizes.n_layer or not has_delta(config, layer)) for layer in range(layers)]
    changed = {heads: Key(heads, "i32s", with_cache), key_length: Key(key_length, "u32", latent + rope)}
    compressed = optional_size(config, "q_lora_rank")
    return [
        *(changed.get(key.name, key) for key in base_keys(arch, sizes)),
        Key(f"{arch}.vocab_size", "u32", sizes.vocab),
        Key(f"{arch}.ssm.conv_kernel", "u32", size(config, "short_conv_kernel_size")),
        Key(f"{arch}.kda.head_dim", "u32", sizes.head_dim),
        Key(f"{arch}.kda.safe_gate", "bool", True),
        Key(f"{arch}.kda.gate_lower_bound", "f32", number(config, "kda_lower_bound")),
        *([Key(f"{arch}.attention.q_lora_rank", "u32", compressed)] if compressed else []),
        Key(f"{arch}.attention.kv_lora_rank", "u32", latent),
        Key(f"{arch}.rope.dimension_count", "u32", rope),
        Key(f"{arch}.attention.key_length_mla", "u32", size(config, "qk_nope_head_dim") + rope),
        Key(f"{arch}.attention.value_length_mla", "u32", size(config, "v_head_dim")),
        Key(f"{arch}.expert_feed_forward_length", "u32", expert_width(sizes)),
        Key(f"{arch}.expert_shared_feed_forward_length", "u32", size(config, "moe_shared_expert_intermediate_size")),
        Key(f"{arch}.expert_shared_count", "u32", 1),
        Key(f"{arch}.leading_dense_block_count", "u32", int(number(config, "first_k_dense_replace") or 0)),
        Key(f"{arch}.expert_weights_scale", "f32", number(config, "routed_scaling_factor")),
        Key(f"{arch}.expert_weights_norm", "bool", bool(config.get("norm_topk_prob"))),
        *(
            Key(f"{arch}.{key}", "f32s", _limits(config, name, layers))
            for key, name in _LIMITS.items()
            if config.get(name) is not None
        ),
        *([Key(f"{arch}.nextn_predict_layers", "u32", sizes.n_draft)] if sizes.n_draft else []),
    ]


# transformers' BailingHybridConfig, under the published names.
_DEFAULTS: dict[str, Any] = {
    "first_k_dense_replace": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "kda_lower_bound": -5.0,
    "kv_lora_rank": 512,
    "layer_group_size": 6,
    "max_position_embeddings": 262144,
    "n_group": 8,
    "norm_topk_prob": True,
    "num_shared_experts": 1,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 6000000.0,
    "routed_scaling_factor": 2.5,
    "short_conv_kernel_size": 4,
    "tie_word_embeddings": False,
    "topk_group": 4,
    "v_head_dim": 128,
}


def _limited(name: str, at: str, inner: str) -> FeedForward:
    return FeedForward(at=at, inner=size_of(inner), limit=lambda config, layer: _limits(config, name, layer + 1)[layer])


assert V3_FORWARD.experts is not None
FORWARD = replace(
    V3_FORWARD,
    attention=replace(V3_FORWARD.attention, gate="g_proj", gate_per_head=lambda _: True),
    kimi_delta=KimiDelta(
        layers=has_delta,
        forget=("f_proj",),
        gate=("g_proj",),
        bound=lambda config: number(config, "kda_lower_bound"),
    ),
    experts=replace(
        V3_FORWARD.experts,
        correction="mlp.gate.expert_bias",
        expert=_limited("expert_swiglu_limit_list", "mlp.experts.{}.", "moe_intermediate_size"),
        shared=_limited("share_expert_swiglu_limit_list", "mlp.shared_experts.", "moe_shared_expert_intermediate_size"),
    ),
    unpacked=lambda _: "GPTQModel has no Ling 3.0, and transformers stacks its experts in one tensor",
    not_mlx="mlx-lm has not been compared with it",
)

FAMILY = Family(
    name=_FAMILY,
    models="Ling-3.0-tiny, Ling-3.0-flash",
    architectures=("BailingMoeV3ForCausalLM",),
    gguf_arch="bailingmoe3",
    rules=_RULES,
    keys=_keys,
    defaults={"bailing_hybrid": _DEFAULTS, "bailing_moe_v3": _DEFAULTS},
    observe=observe_nextn,
    prepare=_prepare,
    dimensions=_dimensions,
    # published latent attention ends in `dense`, Kimi Delta Attention in o_proj; transformers saves dense for both
    rename=(
        (r"^model\.word_embeddings\.", "model.embed_tokens."),
        (r"\.attention\.", ".self_attn."),
        (r"\.self_attn\.dense\.", ".self_attn.o_proj."),
    ),
    rope_kinds=("default",),
    forward=FORWARD,
    traits=Traits(kimi_delta=True, output_after_norm=True, later_tokens_cached=True),
)
