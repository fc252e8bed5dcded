"""MiniCPM3: latent attention with the factors that llama.cpp has in its code."""

from typing import Any

from tests.families.models.case import VOCAB, Case

MINICPM3: dict[str, Any] = {
    "architectures": ["MiniCPM3ForCausalLM"],
    "model_type": "minicpm3",
    "attention_bias": False,
    "bos_token_id": 1,
    "dim_model_base": 256,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "kv_lora_rank": 32,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "rms_norm_eps": 1e-5,
    "scale_depth": 1.4,
    "scale_emb": 12,
    "vocab_size": VOCAB,
}
LONG = {
    "type": "longrope",
    "long_factor": [1.0, 1.2, 1.5, 2.0],
    "short_factor": [1.0, 1.1, 1.3, 1.7],
    "original_max_position_embeddings": 512,
}

CASES = (
    Case("minicpm3", {**MINICPM3, "rope_scaling": LONG}, newest=True, tokenizer="few-letters"),
    Case("minicpm3-plain", {**MINICPM3, "tie_word_embeddings": False}, newest=True, tokenizer="few-letters"),
)
