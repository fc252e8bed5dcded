"""Laguna: heads, window and rope by layer; a gate of each head or of each value; YaRN in layers without a window."""

from typing import Any

from tests.families.models.case import VOCAB, Case

LAGUNA: dict[str, Any] = {
    "architectures": ["LagunaForCausalLM"],
    "model_type": "laguna",
    "gating": True,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "layer_types": [("full" if layer % 4 == 0 else "sliding") + "_attention" for layer in range(6)],
    "max_position_embeddings": 512,
    "mlp_layer_types": ["dense", *["sparse"] * 5],
    "moe_apply_router_weight_on_input": False,
    "moe_intermediate_size": 32,
    "moe_routed_scaling_factor": 2.5,
    "num_attention_heads": 4,
    "num_attention_heads_per_layer": [4, 6, 6, 6, 4, 6],
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "full_attention": {
            "rope_type": "yarn",
            "rope_theta": 500000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "partial_rotary_factor": 0.5,
        },
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
    },
    "shared_expert_intermediate_size": 48,
    "sliding_window": 5,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
# M.1: no window, several dense layers, a gate of each value
PLAIN: dict[str, Any] = {
    **LAGUNA,
    "gating": "per-element",
    "layer_types": ["full_attention"] * 4,
    "mlp_layer_types": ["dense", "dense", "sparse", "sparse"],
    "num_attention_heads_per_layer": None,
    "num_hidden_layers": 4,
    "sliding_window": 0,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 1.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
    },
}
CASES = (Case("laguna", LAGUNA, newest=True), Case("laguna-plain", PLAIN, newest=True))
