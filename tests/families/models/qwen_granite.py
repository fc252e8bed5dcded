"""Qwen 1 to 3, their mixtures, Granite and its mixtures."""

from typing import Any

import numpy as np

from tests.families.models.case import VOCAB, Case, Tensors

BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
ROUTED = {"moe_intermediate_size": 32, "num_experts": 6, "num_experts_per_tok": 3}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
QWEN2 = {**BASE, "model_type": "qwen2", "rope_theta": 1e6}
QWEN2MOE = {**BASE, **ROUTED, "model_type": "qwen2_moe", "shared_expert_intermediate_size": 48, "rope_theta": 1e6}
QWEN3 = {**BASE, "model_type": "qwen3", "head_dim": 32, "rope_theta": 1e6}
QWEN3MOE = {**BASE, **ROUTED, "model_type": "qwen3_moe", "head_dim": 32, "rope_theta": 1e6, "norm_topk_prob": True}


def fused_experts(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Experts as transformers 5 holds them: gate above up in one tensor, stacked over the experts, and down."""
    published = {name: values for name, values in tensors.items() if ".experts." not in name}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}.mlp.experts"

        def stacked(part: str, at: str = at) -> np.ndarray:
            return np.stack([tensors[f"{at}.{expert}.{part}.weight"] for expert in range(config["num_experts"])])

        published[f"{at}.gate_up_proj"] = np.concatenate([stacked("gate_proj"), stacked("up_proj")], axis=1)
        published[f"{at}.down_proj"] = stacked("down_proj")
    return config, published


CASES = (
    Case("qwen2", QWEN2),
    Case("qwen2-tied-no-groups", {**QWEN2, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    Case("qwen2-yarn", {**QWEN2, "rope_scaling": YARN, "rope_theta": 10000.0}),
    Case("qwen2-linear", {**QWEN2, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    Case("qwen2moe", QWEN2MOE),
    Case("qwen2moe-fused-no-biases", {**QWEN2MOE, "qkv_bias": False}, publish=fused_experts),
    Case("qwen3", QWEN3),
    Case("qwen3-tied-yarn", {**QWEN3, "tie_word_embeddings": True, "rope_scaling": YARN, "rope_theta": 10000.0}),
    Case("qwen3moe", QWEN3MOE),
    Case("qwen3moe-fused-tied", {**QWEN3MOE, "tie_word_embeddings": True}, publish=fused_experts),
)
