"""Granite 4: Mamba 2 in most layers, dense or with experts, and the models without Mamba layers."""

from typing import Any

from tests.families.models.case import VOCAB, Case

# config.json as granite-4.0-h-tiny has it, with small sizes
MOE: dict[str, Any] = {
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_multiplier": 0.3,
    "bos_token_id": 0,
    "embedding_multiplier": 3.0,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 64,
    "init_method": "mup",
    "initializer_range": 0.1,
    "intermediate_size": 32,
    "layer_types": ["mamba", "attention", "mamba", "mamba"],
    "logits_scaling": 2.5,
    "logits_to_keep": 0,
    "mamba_chunk_size": 256,
    "mamba_conv_bias": True,
    "mamba_d_conv": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_n_heads": 8,
    "mamba_proj_bias": False,
    "max_position_embeddings": 512,
    "model_type": "granitemoehybrid",
    "normalization_function": "rmsnorm",
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 6,
    "pad_token_id": 0,
    "position_embedding_type": "nope",
    "residual_multiplier": 0.6,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000,
    "shared_intermediate_size": 48,
    "tie_word_embeddings": True,
    "vocab_size": VOCAB,
}
DENSE = {
    **MOE,
    "num_experts_per_tok": 0,
    "num_local_experts": 0,
    "intermediate_size": 96,
    "shared_intermediate_size": 96,
}
PLAIN = {**DENSE, "layer_types": ["attention"] * 4, "position_embedding_type": "rope"}

CASES = (
    Case("granitehybrid", MOE, newest=True),
    Case(
        "granitehybrid-dense-groups",
        {**DENSE, "mamba_n_groups": 2, "tie_word_embeddings": False, "attention_bias": True},
        newest=True,
    ),
    Case("granitehybrid-without-mamba", PLAIN, newest=True),
    Case(
        "granitehybrid-experts-without-mamba",
        {**MOE, "layer_types": ["attention"] * 4, "position_embedding_type": "rope"},
        newest=True,
    ),
)
