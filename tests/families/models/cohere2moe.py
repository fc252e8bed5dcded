"""Cohere 2 MoE: experts after dense layers, sigmoid or softmax scores, both kinds of norms, an averaged expert."""

from typing import Any

from tests.families.models.case import VOCAB, Case
from tests.families.models.glm4moe import with_further_token

COHERE2_MOE: dict[str, Any] = {
    "architectures": ["Cohere2MoeForCausalLM"],
    "model_type": "cohere2_moe",
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "expert_selection_fn": "sigmoid",
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 32,
    "layer_norm_eps": 1e-5,
    "layer_types": [*["full_attention"] * 2, *["sliding_attention"] * 2, "full_attention"],
    "logit_scale": 0.25,
    "max_position_embeddings": 512,
    "mlp_layer_types": [*["dense"] * 2, *["sparse"] * 3],
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "num_shared_experts": 2,
    "prefix_dense_intermediate_size": 96,
    "prefix_dense_sliding_window_pattern": 1,
    "rope_theta": 50000.0,
    "shared_expert_combination_strategy": "average",
    # fewer than the tokens of a test, so that the window matters
    "sliding_window": 6,
    "sliding_window_pattern": 4,
    "tie_word_embeddings": True,
    "vocab_size": VOCAB,
}

CASES = (
    Case("cohere2moe", COHERE2_MOE, newest=True),
    Case(
        "cohere2moe-rms-softmax",
        {
            **COHERE2_MOE,
            "expert_selection_fn": "softmax",
            "layer_types": None,
            "mlp_layer_types": None,
            "num_shared_experts": 0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
        },
        publish=with_further_token,
        newest=True,
    ),
)
