"""Hunyuan 3: norms of heads, experts by sigmoid scores plus a bias, and a shared expert, after a dense layer.

Shape of the GGUF: llama.cpp's `hy_v3` architecture (src/models/hy-v3.cpp), which keeps the layer that predicts a later
token as a block after the model's own.
"""

from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.experts import expert_dimensions, expert_rules, expert_width, shared_rules
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.layers import dense_layers, nextn_rules, observe_nextn, routed_layers
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import NORMS, PLAIN_MLP, PROJECTIONS
from quantkit.families.qwen3 import HEAD_NORM_RULES
from quantkit.forward.config_keys import given
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import EXPERT, HEAD_NORMS, dense_after, number_of

_MLP, _TO = "model.layers.{layer}.mlp", "blk.{layer}"

_LAYER = (*NORMS, *PROJECTIONS, *HEAD_NORM_RULES)
_EXPERTS = (
    Rule(f"{_MLP}.router.gate.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden"), layers=routed_layers),
    Rule(f"{_MLP}.expert_bias", f"{_TO}.exp_probs_b", ("n_expert",), layers=routed_layers),
    *expert_rules(f"{_MLP}.experts", layers=routed_layers),
    *shared_rules(f"{_MLP}.shared_mlp", layers=routed_layers),
)
# The norm at the end of the layer for a later token.
_LAST_NORM = Rule(
    "model.layers.{layer}.final_layernorm.weight", f"{_TO}.nextn.shared_head_norm.weight", ("hidden",), draft=True
)
_NEXTN = tuple(
    rule for rule in nextn_rules((*_LAYER, *_EXPERTS)) if not rule.target.endswith("shared_head_norm.weight")
)

# transformers' HYV3Config. The class has no key for the dense layers: its first one is.
DEFAULTS: dict[str, dict[str, Any]] = {
    "hy_v3": {
        "first_k_dense_replace": 1,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "moe_intermediate_size": 1536,
        "num_experts": 192,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 8,
        "num_shared_experts": 1,
        "rms_norm_eps": 1e-5,
        "rope_theta": 11158840.0,
        "router_scaling_factor": 2.826,
        "tie_word_embeddings": False,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    family = "Hunyuan 3"
    only(config, "hidden_act", *SILU, family=family)
    only(config, "attention_bias", False, family=family)
    only(config, "mlp_bias", False, family=family)
    only(config, "route_norm", True, family=family)
    only(config, "moe_router_use_sigmoid", True, family=family)
    only(config, "qk_norm", True, family=family)
    plain_yarn(config, family)
    layers, dense = size(config, "num_hidden_layers"), int(number(config, "first_k_dense_replace") or 0)
    only(config, "mlp_layer_types", ["dense"] * dense + ["sparse"] * (layers - dense), family=family)
    experts, used = optional_size(config, "num_experts") or 0, size(config, "num_experts_per_tok")
    if used > experts:
        raise CheckpointError(f"config.json: num_experts_per_tok {used} is more than num_experts {experts}")
    return config


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    ffn = expert_width(sizes)
    shared = ffn * size(sizes.config, "num_shared_experts")
    return {**expert_dimensions(ffn, shared), "two_hidden": 2 * sizes.hidden}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/hunyuan.py)."""
    config, ffn = sizes.config, expert_width(sizes)
    return [
        *base_keys(arch, sizes),
        Key(f"{arch}.expert_feed_forward_length", "u32", ffn),
        Key(f"{arch}.expert_shared_feed_forward_length", "u32", ffn * size(config, "num_shared_experts")),
        Key(f"{arch}.expert_weights_norm", "bool", True),
        Key(f"{arch}.expert_weights_scale", "f32", number(config, "router_scaling_factor")),
        Key(f"{arch}.expert_gating_func", "u32", 2),
        *([Key(f"{arch}.nextn_predict_layers", "u32", sizes.n_draft)] if sizes.n_draft else []),
    ]


FORWARD = Architecture(
    attention=Attention(norms=HEAD_NORMS),
    experts=Experts(
        router="mlp.router.gate",
        expert=EXPERT,
        score="sigmoid",
        correction="mlp.expert_bias",
        scale=number_of("router_scaling_factor", 2.826),
        shared=FeedForward(
            at="mlp.shared_mlp.",
            inner=lambda config: (
                int(config["moe_intermediate_size"]) * int(given(config, "num_shared_experts", default=1))
            ),
        ),
        layers=lambda config, layer: dense_after({"first_k_dense_replace": 1, **config}, layer),
    ),
)

FAMILY = Family(
    name="Hunyuan 3",
    models="Hy3 295B-A21B",
    architectures=("HYV3ForCausalLM",),
    gguf_arch="hy_v3",
    rules=(
        *_LAYER,
        *(replace(rule, layers=dense_layers) for rule in PLAIN_MLP),
        *_EXPERTS,
        *_NEXTN,
        _LAST_NORM,
        *ENDS,
    ),
    keys=_keys,
    defaults=DEFAULTS,
    observe=observe_nextn,
    prepare=_prepare,
    dimensions=_dimensions,
    rope_kinds=("default", "linear", "yarn", "dynamic"),
    # the precision of a sum
    no_effect=("enable_moe_fp32_combine",),
    forward=FORWARD,
)
