"""Falcon-H1: attention and Mamba 2 side by side."""

from typing import Any

from tests.families.models.case import VOCAB, Case

# config.json as Falcon-H1-0.5B has it, with small sizes
FALCON_H1: dict[str, Any] = {
    "architectures": ["FalconH1ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_in_multiplier": 0.7,
    "attention_out_multiplier": 0.9375,
    "bos_token_id": 0,
    "embedding_multiplier": 5.65,
    "eos_token_id": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "key_multiplier": 0.390625,
    "lm_head_multiplier": 0.078125,
    "mamba_chunk_size": 128,
    "mamba_conv_bias": True,
    "mamba_d_conv": 4,
    "mamba_d_head": 12,
    "mamba_d_ssm": 96,
    "mamba_d_state": 16,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_n_heads": 8,
    "mamba_norm_before_gate": False,
    "mamba_proj_bias": False,
    "mamba_rms_norm": False,
    "mamba_use_mlp": True,
    "max_position_embeddings": 512,
    "mlp_bias": False,
    "mlp_expansion_factor": 8,
    "mlp_multipliers": [0.8838834764831844, 0.5859375],
    "model_type": "falcon_h1",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "num_logits_to_keep": 1,
    "pad_token_id": 0,
    "projectors_bias": False,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 100000000000.0,
    "ssm_in_multiplier": 1.25,
    "ssm_multipliers": [0.3535533905932738, 0.25, 0.8838834764831845, 0.5, 0.3535533905932738],
    "ssm_out_multiplier": 0.23570226039551587,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB,
}

CASES = (
    Case("falcon-h1", FALCON_H1, seed=1, newest=True),
    Case(
        "falcon-h1-norm-groups",
        {**FALCON_H1, "mamba_rms_norm": True, "mamba_n_groups": 2, "head_dim": 32, "rope_theta": 10000},
        newest=True,
    ),
    Case(
        "falcon-h1-tied",
        {**FALCON_H1, "tie_word_embeddings": True, "embedding_multiplier": 1.0, "lm_head_multiplier": 1.0},
        newest=True,
    ),
)
