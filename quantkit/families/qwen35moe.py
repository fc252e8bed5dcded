"""Qwen 3.5's mixtures: Qwen 3.5's layers with routed experts and a shared one behind a gate, the draft layer's too.

Shape of the GGUF: llama.cpp's `qwen35moe` architecture (src/models/qwen35moe.cpp). The experts of a layer are published
in one tensor.
"""

from dataclasses import replace
from typing import Any

from quantkit.families.base.delta_net import DELTA_NET, delta_net_keys, dimensions
from quantkit.families.base.family import Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, size
from quantkit.families.qwen2moe import ROUTED, SHARED, every_layer_routed
from quantkit.families.qwen2moe import dimensions as expert_widths
from quantkit.families.qwen2moe import keys as expert_keys
from quantkit.families.qwen3vl import QWEN3_5_PROJECTOR
from quantkit.families.qwen35 import (
    DEFAULTS,
    ENDS,
    GATED_ATTENTION,
    NORMS,
    check_sections,
    draft_rules,
    prepare_delta_net,
    section_keys,
)
from quantkit.families.qwen35 import FAMILY as QWEN35
from quantkit.families.qwen35 import FORWARD as DENSE
from quantkit.forward.description import Experts, FeedForward
from quantkit.forward.settings import EXPERT, FUSED_EXPERTS, size_of

EXPERT_RULES: tuple[Rule, ...] = ROUTED + SHARED


def all_dimensions(sizes: Hyperparameters) -> dict[str, int]:
    """The widths of DeltaNet and of the experts."""
    return dimensions(sizes) | expert_widths(sizes)


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    return [*expert_keys(arch, sizes), *delta_net_keys(arch, sizes), *section_keys(arch, sizes)]


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    prepare_delta_net(config, "Qwen 3.5 MoE")
    check_sections(config, "Qwen 3.5 MoE")
    every_layer_routed(config, "Qwen 3.5 MoE")
    size(config, "shared_expert_intermediate_size")
    return config


EXPERTS = Experts(
    router="mlp.gate",
    expert=EXPERT,
    mlx="mlp.switch_mlp.",
    stacked=FUSED_EXPERTS,
    shared=FeedForward(at="mlp.shared_expert.", inner=size_of("shared_expert_intermediate_size")),
    shared_gate="mlp.shared_expert_gate",
)
FORWARD = replace(DENSE, experts=EXPERTS, mlx_type="qwen3_5_moe")

# transformers' Qwen3_5MoeTextConfig.
_DEFAULTS: dict[str, Any] = {
    **{key: value for key, value in DEFAULTS["qwen3_5_text"].items() if key != "intermediate_size"},
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 8,
    "num_experts": 256,
}

FAMILY = replace(
    QWEN35,
    name="Qwen 3.5 MoE",
    models="Qwen3.5-35B-A3B/122B-A10B/397B-A17B, Qwen3.6-35B-A3B",
    architectures=("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM"),
    gguf_arch="qwen35moe",
    rules=(
        *NORMS,
        *GATED_ATTENTION,
        *DELTA_NET,
        *EXPERT_RULES,
        *draft_rules((*NORMS, *GATED_ATTENTION, *EXPERT_RULES)),
        *ENDS,
    ),
    keys=_keys,
    defaults={"qwen3_5_moe_text": _DEFAULTS},
    prepare=_prepare,
    dimensions=all_dimensions,
    text_models={"Qwen3_5MoeForConditionalGeneration": ("Qwen3_5MoeForCausalLM", "qwen3_5_moe_text")},
    forward={"Qwen3_5MoeForCausalLM": FORWARD},
    projectors={"Qwen3_5MoeForConditionalGeneration": QWEN3_5_PROJECTOR},
)
