"""Ling 2.0 and Ring 2.0: groups of experts by sigmoid scores plus a bias, half of a head rotated, norms of heads.

Shape of the GGUF: llama.cpp's `bailingmoe2` architecture (src/models/bailingmoe2.cpp). It keeps queries, keys and
values in one matrix, and multiplies the width of the shared expert by their number. transformers has no class; the
source is the published modeling_bailing_moe_v2.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.experts import expert_dimensions, expert_rules, expert_width, shared_rules
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.layers import dense_layers, nextn_keys, nextn_rules, observe_nextn, routed_layers
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.qwen2 import NORMS, PLAIN_MLP, ROPE_KINDS
from quantkit.forward.config_keys import given
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import EXPERT, dense_after, flag, number_of, size_of

_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_MLP = f"{_AT}.mlp"

ENDS = (
    Rule("model.word_embeddings.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule("model.norm.weight", "output_norm.weight", ("hidden",)),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden")),
)
_LAYER = (
    *NORMS,
    Rule(f"{_AT}.attention.query_key_value.weight", f"{_TO}.attn_qkv.weight", ("qkv", "hidden")),
    Rule(f"{_AT}.attention.query_layernorm.weight", f"{_TO}.attn_q_norm.weight", ("head_dim",)),
    Rule(f"{_AT}.attention.key_layernorm.weight", f"{_TO}.attn_k_norm.weight", ("head_dim",)),
    Rule(f"{_AT}.attention.dense.weight", f"{_TO}.attn_output.weight", ("hidden", "q")),
)
_EXPERTS = (
    Rule(f"{_MLP}.gate.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden"), layers=routed_layers),
    Rule(f"{_MLP}.gate.expert_bias", f"{_TO}.exp_probs_b.bias", ("n_expert",), required=False, layers=routed_layers),
    *expert_rules(f"{_MLP}.experts", layers=routed_layers),
    *shared_rules(f"{_MLP}.shared_experts", layers=routed_layers),
)
_OUT_NORM = Rule(f"{_AT}.final_layernorm.weight", f"{_TO}.layer_output_norm.weight", ("hidden",))
RULES = (
    *_LAYER,
    *(replace(rule, layers=dense_layers) for rule in PLAIN_MLP),
    *_EXPERTS,
    *nextn_rules((*_LAYER, *_EXPERTS, _OUT_NORM)),
    *ENDS,
)

# BailingMoeV2Config of the published code.
_DEFAULTS: dict[str, Any] = {
    "first_k_dense_replace": 0,
    "max_position_embeddings": 32768,
    "n_group": 8,
    "norm_topk_prob": True,
    "num_nextn_predict_layers": 0,
    "num_shared_experts": 1,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-6,
    "rope_theta": 600000.0,
    "routed_scaling_factor": 1.0,
    "score_function": "sigmoid",
    "topk_group": 4,
}


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    ffn = expert_width(sizes)
    qkv = (sizes.n_head + 2 * sizes.n_head_kv) * sizes.head_dim
    return {**expert_dimensions(ffn, ffn), "qkv": qkv, "two_hidden": 2 * sizes.hidden}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    config, ffn = sizes.config, expert_width(sizes)
    return [
        *base_keys(arch, sizes),
        Key(f"{arch}.rope.dimension_count", "u32", int(sizes.head_dim * sizes.rope.get("partial_rotary_factor", 0.5))),
        Key(f"{arch}.leading_dense_block_count", "u32", int(number(config, "first_k_dense_replace") or 0)),
        Key(f"{arch}.vocab_size", "u32", sizes.vocab),
        Key(f"{arch}.expert_feed_forward_length", "u32", ffn),
        Key(f"{arch}.expert_shared_feed_forward_length", "u32", ffn),
        Key(f"{arch}.expert_weights_scale", "f32", number(config, "routed_scaling_factor")),
        Key(f"{arch}.expert_shared_count", "u32", 1),
        Key(f"{arch}.expert_weights_norm", "bool", bool(config.get("norm_topk_prob"))),
        *nextn_keys(arch, sizes),
    ]


def prepare_bailing(config: dict[str, Any], family: str) -> dict[str, Any]:
    """Refuse what neither of llama.cpp's graphs of this line has."""
    only(config, "hidden_act", *SILU, family=family)
    only(config, "use_bias", False, family=family)
    only(config, "use_qkv_bias", False, family=family)
    only(config, "use_rmsnorm", True, family=family)
    only(config, "norm_head", False, family=family)
    only(config, "norm_softmax", False, family=family)
    only(config, "tie_word_embeddings", False, family=family)
    plain_yarn(config, family)
    experts, used = optional_size(config, "num_experts") or 0, size(config, "num_experts_per_tok")
    if used > experts:
        raise CheckpointError(f"config.json: num_experts_per_tok {used} is more than num_experts {experts}")
    return config


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    family = "Ling 2.0"
    only(config, "use_qk_norm", True, family=family)
    only(config, "num_shared_experts", 1, family=family)
    only(config, "moe_shared_expert_intermediate_size", size(config, "moe_intermediate_size"), family=family)
    heads, hidden = size(config, "num_attention_heads"), size(config, "hidden_size")
    width = optional_size(config, "head_dim")
    if width is not None and width * heads != hidden:
        raise UnsupportedError(
            f"config.json: {heads} heads of head_dim {width} are not hidden_size {hidden}, but llama.cpp runs {family}"
            " only with heads that fill it; a GGUF cannot express this setting"
        )
    return prepare_bailing(config, family)


def _is_second(config: Mapping[str, Any]) -> bool:
    """Whether the config has the router of the second generation; both generations have the same model_type."""
    marks = ("moe_router_enable_expert_bias", "n_group", "topk_group", "use_qk_norm")
    return config.get("score_function") == "sigmoid" or any(config.get(name) is not None for name in marks)


FORWARD = Architecture(
    embedding="word_embeddings",
    attention=Attention(
        at="attention.", fused="query_key_value", out="dense", norms=("query_layernorm", "key_layernorm")
    ),
    experts=Experts(
        router="mlp.gate",
        expert=EXPERT,
        mlx="mlp.switch_mlp.",
        score="sigmoid",
        correction="mlp.gate.expert_bias",
        groups=lambda config: (int(given(config, "n_group", default=8)), int(given(config, "topk_group", default=4))),
        group_by=2,
        normalised=flag("norm_topk_prob", True),
        scale=number_of("routed_scaling_factor"),
        shared=FeedForward(at="mlp.shared_experts.", inner=size_of("moe_intermediate_size")),
        layers=dense_after,
    ),
)

FAMILY = Family(
    name="Ling 2.0",
    models="Ling-mini-2.0, Ling-flash-2.0, Ling-1T, Ring 2.0",
    architectures=("BailingMoeV2ForCausalLM",),
    gguf_arch="bailingmoe2",
    rules=RULES,
    keys=_keys,
    defaults={"bailing_moe_v2": _DEFAULTS, "bailing_moe": _DEFAULTS},
    observe=observe_nextn,
    recognises=_is_second,
    prepare=_prepare,
    dimensions=_dimensions,
    rope_kinds=ROPE_KINDS,
    forward=FORWARD,
)
