"""Llama's own shape and its nearest relatives."""

from tests.families.models.case import VOCAB, Case

BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}

CASES = (
    Case("llama", {**BASE, "model_type": "llama", "num_key_value_heads": 2, "rms_norm_eps": 1e-5}),
    Case(
        "mistral", {**BASE, "model_type": "mistral", "num_key_value_heads": 2, "head_dim": 32, "sliding_window": None}
    ),
    Case("mixtral", {**BASE, "model_type": "mixtral", "num_key_value_heads": 2, "num_local_experts": 4}),
)
