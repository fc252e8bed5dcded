"""GLM-4.5, 4.6 and 4.7: GLM-4's partial rotary positions, experts chosen by sigmoid scores plus a bias.

Shape of the GGUF: llama.cpp's `glm4moe` architecture (src/models/glm4-moe.cpp). It calls the feed-forward's norm
post_attention_norm. The layers that predict a further token (nextn) are blocks after the model's own.
"""

from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.experts import expert_dimensions, expert_rules, expert_width, shared_rules
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.layers import dense_layers, nextn_keys, nextn_rules, observe_nextn, routed_layers
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.base.traits import Traits
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import BIASES, NORMS, PLAIN_MLP, PROJECTIONS, ROPE_KINDS
from quantkit.families.qwen3 import HEAD_NORM_RULES
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import EXPERT, FUSED_EXPERTS, HEAD_NORMS, dense_after, flag, number_of
from quantkit.tokenizer.roles import TokenRoles

_MLP, _TO = "model.layers.{layer}.mlp", "blk.{layer}"
_ATTENTION_NORM, _FEED_NORM = NORMS

_LAYER = (
    _ATTENTION_NORM,
    *PROJECTIONS,
    *(replace(rule, required=False) for rule in (*BIASES, *HEAD_NORM_RULES)),
    replace(_FEED_NORM, target=f"{_TO}.post_attention_norm.weight"),
)
_EXPERTS = (
    Rule(f"{_MLP}.gate.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden"), layers=routed_layers),
    Rule(f"{_MLP}.gate.e_score_correction_bias", f"{_TO}.exp_probs_b.bias", ("n_expert",), layers=routed_layers),
    *expert_rules(f"{_MLP}.experts", layers=routed_layers),
    *shared_rules(f"{_MLP}.shared_experts", layers=routed_layers),
)
RULES = (
    *_LAYER,
    *(replace(rule, layers=dense_layers) for rule in PLAIN_MLP),
    *_EXPERTS,
    *nextn_rules((*_LAYER, *_EXPERTS)),
    *ENDS,
)

# transformers' Glm4MoeConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "glm4_moe": {
        "attention_bias": False,
        "first_k_dense_replace": 1,
        "max_position_embeddings": 131072,
        "moe_intermediate_size": 1408,
        "n_group": 1,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 8,
        "num_nextn_predict_layers": 1,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 1.0,
        "topk_group": 1,
        "use_qk_norm": False,
    }
}


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    ffn = expert_width(sizes)
    return {**expert_dimensions(ffn, ffn * size(sizes.config, "n_shared_experts")), "two_hidden": 2 * sizes.hidden}


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The common keys, the rotated width and the experts' keys, in the converter's order."""
    config = sizes.config
    return [
        *base_keys(arch, sizes),
        Key(f"{arch}.rope.dimension_count", "u32", int(sizes.head_dim * sizes.rope.get("partial_rotary_factor", 0.5))),
        Key(f"{arch}.expert_feed_forward_length", "u32", expert_width(sizes)),
        Key(f"{arch}.expert_shared_count", "u32", size(config, "n_shared_experts")),
        Key(f"{arch}.leading_dense_block_count", "u32", int(number(config, "first_k_dense_replace") or 0)),
        Key(f"{arch}.expert_gating_func", "u32", 2),
        Key(f"{arch}.expert_weights_scale", "f32", number(config, "routed_scaling_factor")),
        Key(f"{arch}.expert_weights_norm", "bool", bool(config.get("norm_topk_prob"))),
        *nextn_keys(arch, sizes),
    ]


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse settings that llama.cpp's graph does not have."""
    only(config, "hidden_act", *SILU, family="GLM-4.5")
    only(config, "scoring_func", "sigmoid", family="GLM-4.5")
    plain_yarn(config, "GLM-4.5")
    experts, used = optional_size(config, "n_routed_experts") or 0, size(config, "num_experts_per_tok")
    if used > experts:
        raise CheckpointError(f"config.json: num_experts_per_tok {used} is more than n_routed_experts {experts}")
    return config


def groups(config: Config) -> tuple[int, int]:
    """How many groups the experts are in, and from how many of them a token takes experts."""
    return int(given(config, "n_group", default=1)), int(given(config, "topk_group", default=1))


SHARED_EXPERTS = FeedForward(
    at="mlp.shared_experts.",
    inner=lambda config: int(config["moe_intermediate_size"]) * int(given(config, "n_shared_experts", default=1)),
)

FORWARD = Architecture(
    attention=Attention(norms=HEAD_NORMS, has_norms=flag("use_qk_norm")),
    experts=Experts(
        router="mlp.gate",
        expert=EXPERT,
        mlx="mlp.switch_mlp.",
        stacked=FUSED_EXPERTS,
        score="sigmoid",
        correction="mlp.gate.e_score_correction_bias",
        groups=groups,
        group_by=2,
        normalised=flag("norm_topk_prob", True),
        scale=number_of("routed_scaling_factor"),
        shared=SHARED_EXPERTS,
        layers=dense_after,
    ),
)

_END = "<|endoftext|>"
TOKEN_ROLES = TokenRoles(also={"bos": "[gMASK]", "eot": "<|user|>", "unk": _END, "eom": "<|observation|>"})

FAMILY = Family(
    name="GLM-4.5",
    models="GLM-4.5, GLM-4.5-Air, GLM-4.6, GLM-4.7",
    architectures=("Glm4MoeForCausalLM",),
    gguf_arch="glm4moe",
    rules=RULES,
    keys=keys,
    defaults=DEFAULTS,
    observe=observe_nextn,
    prepare=prepare,
    dimensions=_dimensions,
    rope_kinds=ROPE_KINDS,
    # the tensors show the norms
    no_effect=("use_qk_norm",),
    forward=FORWARD,
    traits=Traits(feed_norm="post_attention_norm"),
    token_roles=TOKEN_ROLES,
)
