"""Phi-MoE: LayerNorms, biases, LongRoPE with stated magnitudes, SparseMixer. llama.cpp's graph is that of Phi-3."""

from typing import Any

from tests.families.models.case import VOCAB, Case

PHIMOE: dict[str, Any] = {
    "architectures": ["PhiMoEForCausalLM"],
    "model_type": "phimoe",
    "attention_bias": True,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 48,
    "lm_head_bias": True,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "original_max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "type": "longrope",
        "long_factor": [1.0, 1.25, 1.5, 2.0, 3.0, 4.5, 6.0, 8.0],
        "long_mscale": 1.25,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0, 1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5],
        "short_mscale": 1.25,
    },
    "rope_theta": 10000.0,
    "router_jitter_noise": 0.1,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
CASES = (
    # the converter writes a SentencePiece vocabulary
    Case("phimoe", PHIMOE, newest=True, graph_differs=True, vocabulary=False),
)
