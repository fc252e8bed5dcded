"""MiMo-V2-Flash: values narrower than keys, twice the key heads and a sink a head in layers with a window.

Shape of the GGUF: llama.cpp's `mimo2` architecture (src/models/mimo2.cpp). Names of config.json are those of the hub;
transformers' class has others for some of them.
"""

import re
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.experts import expert_dimensions, expert_rules, expert_width
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.layer_kinds import layer_kinds
from quantkit.families.base.layers import nextn_keys, nextn_rules
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.traits import Traits
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import NORMS, PLAIN_MLP
from quantkit.forward.config_keys import Config, given, head_dim
from quantkit.forward.description import Architecture, Experts
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import EXPERT, FUSED_EXPERTS, local_rope

_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_FAMILY = "MiMo-V2"
# of a head, where config.json does not say
_ROTATED = 0.334
_FULL_EVERY = 6


def _slides(config: Config, layer: int) -> bool:
    """Whether a layer has a window; without a list the first and each sixth have none."""
    pattern, kinds = config.get("hybrid_layer_pattern"), config.get("layer_types")
    if pattern:
        # layers that predict a later token have windows
        return layer >= len(pattern) or pattern[layer] == 1
    if kinds:
        return bool(layer >= len(kinds) or kinds[layer] == "sliding_attention")
    return layer > 0 and (layer + 1) % _FULL_EVERY != 0


def _is_routed(config: Config, layer: int) -> bool:
    """Whether a layer has experts; without a list all but the first."""
    stated, kinds = config.get("moe_layer_freq"), config.get("mlp_layer_types")
    if isinstance(stated, list):
        return bool(stated[layer])
    return bool(kinds[layer] == "sparse" if kinds else layer)


def _key_heads(config: Config, layer: int) -> int:
    heads = int(config["num_key_value_heads"])
    return int(given(config, "swa_num_key_value_heads", default=2 * heads)) if _slides(config, layer) else heads


def _rotated(config: Config) -> int:
    nested = (config.get("rope_parameters") or {}).get("full_attention") or {}
    share = given(config, "partial_rotary_factor", default=nested.get("partial_rotary_factor", _ROTATED))
    return int(head_dim(config) * share)


def _value_width(config: Config) -> int:
    return int(given(config, "v_head_dim", default=head_dim(config)))


def _dense(sizes: Hyperparameters) -> list[int]:
    return [layer for layer in range(sizes.n_layer) if not _is_routed(sizes.config, layer)]


def _routed(sizes: Hyperparameters) -> list[int]:
    return [layer for layer in range(sizes.n_layer) if _is_routed(sizes.config, layer)]


_ATTENTION = (
    Rule(f"{_AT}.self_attn.q_proj.weight", f"{_TO}.attn_q.weight", ("q", "hidden")),
    Rule(f"{_AT}.self_attn.k_proj.weight", f"{_TO}.attn_k.weight", ("keys", "hidden")),
    Rule(f"{_AT}.self_attn.v_proj.weight", f"{_TO}.attn_v.weight", ("values", "hidden")),
    Rule(f"{_AT}.self_attn.o_proj.weight", f"{_TO}.attn_output.weight", ("hidden", "mixed")),
    Rule(f"{_AT}.self_attn.attention_sink_bias", f"{_TO}.attn_sinks.weight", ("n_head",), required=False),
)
_LAYER = (
    *NORMS,
    *_ATTENTION,
    *(replace(rule, layers=_dense) for rule in PLAIN_MLP),
    Rule(f"{_AT}.mlp.gate.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden"), layers=_routed),
    Rule(f"{_AT}.mlp.gate.e_score_correction_bias", f"{_TO}.exp_probs_b.bias", ("n_expert",), layers=_routed),
    *expert_rules(f"{_AT}.mlp.experts", layers=_routed),
)
_MTP = "model.mtp.layers.{draft}"


def _of_mtp(rule: Rule) -> Rule:
    return replace(rule, source=rule.source.replace(_AT, _MTP))


RULES = (
    *_LAYER,
    *(
        _of_mtp(rule)
        for rule in nextn_rules(
            (
                *NORMS,
                Rule(f"{_AT}.pre_mlp_layernorm.weight", f"{_TO}.ffn_norm.weight", ("hidden",)),
                Rule(f"{_AT}.final_layernorm.weight", f"{_TO}.layer_output_norm.weight", ("hidden",), required=False),
                *_ATTENTION,
                *PLAIN_MLP,
            )
        )
    ),
    *ENDS,
)

# transformers' MiMoV2FlashConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "mimo_v2_flash": {
        "attention_bias": False,
        "attention_value_scale": 0.707,
        "head_dim": 192,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "moe_intermediate_size": 2048,
        "n_group": 1,
        "n_routed_experts": 256,
        "norm_topk_prob": True,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 4,
        "rope_theta": 5000000.0,
        "scoring_func": "sigmoid",
        "swa_rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "v_head_dim": 128,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph does not have.

    Raises:
        CheckpointError: a list does not have an entry per layer, or a token has more experts than there are.
    """
    n_layer = size(config, "num_hidden_layers")
    only(config, "hidden_act", *SILU, family=_FAMILY)
    only(config, "attention_bias", False, family=_FAMILY)
    only(config, "tie_word_embeddings", False, family=_FAMILY)
    only(config, "scoring_func", "sigmoid", family=_FAMILY)
    only(config, "topk_method", "noaux_tc", family=_FAMILY)
    only(config, "norm_topk_prob", True, family=_FAMILY)
    only(config, "routed_scaling_factor", 1.0, family=_FAMILY)
    only(config, "n_shared_experts", 0, family=_FAMILY)
    only(config, "n_group", 1, family=_FAMILY)
    for name in ("head_dim", "num_attention_heads", "v_head_dim"):
        only(config, f"swa_{name}", config.get(name), family=_FAMILY)
    layer_kinds(config, n_layer, ("sliding_attention", "full_attention"))
    layer_kinds(config, n_layer, ("dense", "sparse"), name="mlp_layer_types")
    for name in ("hybrid_layer_pattern", "moe_layer_freq"):
        stated = config.get(name)
        if stated is not None and (not isinstance(stated, list) or len(stated) != n_layer):
            raise CheckpointError(f"config.json: {name} must list 0 or 1 for {n_layer} layers, not {stated!r}")
    experts, used = optional_size(config, "n_routed_experts") or 0, size(config, "num_experts_per_tok")
    if used > experts:
        raise CheckpointError(f"config.json: num_experts_per_tok {used} is more than n_routed_experts {experts}")
    if config.get("rms_norm_eps") is None:
        config["rms_norm_eps"] = number(config, "layernorm_epsilon") or 1e-5
    return config


def _observe(config: dict[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """config.json with the number of layers that predict a later token, which only the tensors show."""
    config["num_nextn_predict_layers"] = len(
        {match[1] for name in tensors if (match := re.match(r"model\.mtp\.layers\.(\d+)\.eh_proj\.", name))}
    )
    return config


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/mimo.py)."""
    config, layers = sizes.config, range(sizes.n_layer + sizes.n_draft)
    heads = f"{arch}.attention.head_count_kv"
    eps, value_width = f"{arch}.attention.layer_norm_rms_epsilon", f"{arch}.attention.value_length"
    keys = []
    for key in base_keys(arch, sizes):
        if key.name == heads:
            keys.append(Key(heads, "i32s", [_key_heads(config, layer) for layer in layers]))
        elif key.name == value_width:
            keys.append(replace(key, value=_value_width(config)))
        elif key.name != eps:
            keys.append(key)
    scale = number(config, "attention_value_scale")
    return [
        *keys,
        Key(f"{arch}.attention.sliding_window", "u32", size(config, "sliding_window")),
        Key(f"{arch}.attention.sliding_window_pattern", "i32s", [int(_slides(config, layer)) for layer in layers]),
        Key(f"{arch}.expert_feed_forward_length", "u32", expert_width(sizes)),
        Key(f"{arch}.rope.dimension_count", "u32", _rotated(config)),
        Key(eps, "f32", sizes.norm_eps),
        *([Key(f"{arch}.attention.value_scale", "f32", scale)] if scale is not None else []),
        *(nextn_keys(arch, sizes) if sizes.n_draft else []),
    ]


def _layer_dimensions(sizes: Hyperparameters, layer: int) -> dict[str, int]:
    heads = _key_heads(sizes.config, layer)
    return {"keys": heads * sizes.head_dim, "values": heads * _value_width(sizes.config)}


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    return {
        **expert_dimensions(expert_width(sizes)),
        "mixed": sizes.n_head * _value_width(sizes.config),
        "two_hidden": 2 * sizes.hidden,
    }


FORWARD = Architecture(
    attention=Attention(
        rotary=_rotated,
        rope=local_rope(_slides, "swa_rope_theta"),
        window=lambda config, layer: config.get("sliding_window") if _slides(config, layer) else None,
        sinks="attention_sink_bias",
        value_width=_value_width,
        # on the output, where llama.cpp has it, not on the values
        multipliers=lambda config: (1.0, 1.0, 1.0, float(given(config, "attention_value_scale", default=1.0))),
    ),
    per_layer=lambda config, layer: {**config, "num_key_value_heads": _key_heads(config, layer)},
    experts=Experts(
        router="mlp.gate",
        expert=EXPERT,
        stacked=FUSED_EXPERTS,
        score="sigmoid",
        correction="mlp.gate.e_score_correction_bias",
        layers=_is_routed,
    ),
)

FAMILY = Family(
    name=_FAMILY,
    models="MiMo-V2-Flash 309B-A15B",
    architectures=("MiMoV2FlashForCausalLM",),
    gguf_arch="mimo2",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    observe=_observe,
    prepare=_prepare,
    dimensions=_dimensions,
    layer_dimensions=_layer_dimensions,
    rope_kinds=("default",),
    forward=FORWARD,
    traits=Traits(sliding_every=_FULL_EVERY),
)
