"""ERNIE 4.5's mixtures: softmax scores, a bias on them for the choice only, shared experts after a few dense layers.

Shape of the GGUF: llama.cpp's `ernie4_5-moe` architecture (src/models/ernie4-5-moe.cpp).
"""

from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.experts import expert_dimensions, expert_rules, expert_width, shared_rules
from quantkit.families.base.family import Dropped, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import only
from quantkit.families.ernie4_5 import prepare as prepare_dense
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import NORMS, PLAIN_MLP, PROJECTIONS, ROPE_KINDS
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import EXPERT, FUSED_EXPERTS

_MLP, _TO = "model.layers.{layer}.mlp", "blk.{layer}"
# llama.cpp's loader gives every layer from the first one on experts.
_FAMILY = "ERNIE 4.5's mixtures"


def _n_dense(sizes: Hyperparameters) -> int:
    return min(int(number(sizes.config, "moe_layer_start_index") or 0), sizes.n_layer)


def _dense(sizes: Hyperparameters) -> range:
    return range(_n_dense(sizes))


def _routed(sizes: Hyperparameters) -> range:
    return range(_n_dense(sizes), sizes.n_layer)


def _n_shared(sizes: Hyperparameters) -> int:
    return int(number(sizes.config, "moe_num_shared_experts") or 0)


RULES = (
    *NORMS,
    *PROJECTIONS,
    *(replace(rule, layers=_dense) for rule in PLAIN_MLP),
    Rule(f"{_MLP}.gate.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden"), layers=_routed),
    Rule(
        f"{_MLP}.moe_statics.e_score_correction_bias",
        f"{_TO}.exp_probs_b.bias",
        ("1", "n_expert"),
        required=False,
        layers=_routed,
    ),
    *expert_rules(f"{_MLP}.experts", layers=_routed),
    *shared_rules(f"{_MLP}.shared_experts", layers=_routed, when=lambda sizes: _n_shared(sizes) > 0),
    *ENDS,
)

# transformers 5 has the bias within the router.
RENAME = ((r"\.mlp\.gate\.moe_statics\.", ".mlp.moe_statics."),)

# transformers' Ernie4_5_MoeConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "ernie4_5_moe": {
        "max_position_embeddings": 131072,
        "moe_intermediate_size": 1536,
        "moe_k": 6,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 1,
        "moe_layer_start_index": 1,
        "moe_num_experts": 64,
        "moe_num_shared_experts": 2,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    }
}


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    ffn = expert_width(sizes)
    return expert_dimensions(ffn, ffn * _n_shared(sizes))


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    config, dims = sizes.config, _dimensions(sizes)
    base = [key for key in base_keys(arch, sizes) if not key.name.startswith(f"{arch}.expert_")]
    result = [
        *base,
        Key(f"{arch}.expert_count", "u32", sizes.n_expert),
        Key(f"{arch}.expert_used_count", "u32", sizes.n_expert_used),
        Key(f"{arch}.interleave_moe_layer_step", "u32", 1),
        Key(f"{arch}.leading_dense_block_count", "u32", int(number(config, "moe_layer_start_index") or 0)),
        Key(f"{arch}.expert_feed_forward_length", "u32", dims["expert_ffn"]),
        Key(f"{arch}.expert_shared_count", "u32", _n_shared(sizes)),
    ]
    if dims["shared_ffn"]:
        # the converter takes intermediate_size / num_key_value_heads, which is the same in the published models
        result.append(Key(f"{arch}.expert_shared_feed_forward_length", "u32", dims["shared_ffn"]))
    return result


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    last = size(config, "num_hidden_layers") - 1
    only(config, "moe_layer_interval", 1, family=_FAMILY)
    only(config, "moe_norm_min", 1e-12, family=_FAMILY)
    only(config, "moe_layer_end_index", -1, last, family=_FAMILY)
    experts, used = optional_size(config, "moe_num_experts") or 0, size(config, "moe_k")
    if used > experts:
        raise CheckpointError(f"config.json: moe_k {used} is more than moe_num_experts {experts}")
    return {**prepare_dense(config), "num_experts": experts, "num_experts_per_tok": used}


def _has_experts(config: Config, layer: int) -> bool:
    return layer >= int(given(config, "moe_layer_start_index", default=1))


FORWARD = Architecture(
    tied=True,
    attention=Attention(pairs="neighbours"),
    experts=Experts(
        router="mlp.gate",
        expert=EXPERT,
        stacked=FUSED_EXPERTS,
        count=("moe_num_experts",),
        used=("moe_k",),
        correction="mlp.moe_statics.e_score_correction_bias",
        shared=FeedForward(
            at="mlp.shared_experts.",
            inner=lambda config: int(config["moe_intermediate_size"]) * int(config["moe_num_shared_experts"]),
        ),
        layers=_has_experts,
    ),
)

FAMILY = Family(
    name="ERNIE 4.5 MoE",
    models="ERNIE-4.5-21B-A3B, ERNIE-4.5-300B-A47B",
    architectures=("Ernie4_5_MoeForCausalLM",),
    gguf_arch="ernie4_5-moe",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    rename=RENAME,
    dropped=(Dropped(r"model\.mtp_.*", "they predict a later token, which llama.cpp's ernie4_5-moe does not use"),),
    dimensions=_dimensions,
    rope_kinds=ROPE_KINDS,
    forward=FORWARD,
)
