"""AFMoE: gated attention, windows, layers without positions, sigmoid scores with a bias, experts in both layouts."""

from typing import Any

from tests.families.models.case import VOCAB, Case
from tests.families.models.glm4moe import fused

AFMOE: dict[str, Any] = {
    "architectures": ["AfmoeForCausalLM"],
    "model_type": "afmoe",
    "global_attn_every_n_layers": 4,
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "head_dim": 32,
    "hidden_act": "silu",
    "intermediate_size": 96,
    "layer_types": [*["sliding_attention"] * 3, "full_attention", "sliding_attention"],
    "max_position_embeddings": 512,
    "moe_intermediate_size": 32,
    "mup_enabled": True,
    "n_group": 1,
    "num_attention_heads": 4,
    "num_dense_layers": 2,
    "num_expert_groups": 1,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "num_shared_experts": 1,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000,
    "route_norm": True,
    "route_scale": 2.5,
    "score_func": "sigmoid",
    "sliding_window": 8,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}

CASES = (
    Case("afmoe", AFMOE, newest=True),
    # the converter takes experts one by one only
    Case(
        "afmoe-fused-two-shared-tied",
        {**AFMOE, "num_shared_experts": 2, "tie_word_embeddings": True},
        publish=fused,
        newest=True,
        converter=False,
    ),
)
