"""Bamba: Mamba 2 in most layers, attention that rotates half of a head in the others."""

from typing import Any

from tests.families.models.case import VOCAB, Case

BAMBA: dict[str, Any] = {
    "architectures": ["BambaForCausalLM"],
    "model_type": "bamba",
    "attention_bias": False,
    "attn_layer_indices": [1, 3],
    "attn_rotary_emb": 8,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "mamba_chunk_size": 256,
    "mamba_conv_bias": True,
    "mamba_d_conv": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_expand": 2,
    "mamba_n_groups": 2,
    "mamba_n_heads": 8,
    "mamba_proj_bias": False,
    "max_position_embeddings": 512,
    "mlp_bias": False,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB,
}

# the converter reorders rows of a whole head, so llama.cpp rotates values that belong to other pairs, or to none
CASES = (Case("bamba", BAMBA, newest=True, converter=False),)
