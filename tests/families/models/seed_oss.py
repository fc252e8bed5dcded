"""Seed-OSS: Qwen 2's graph, with a head size of its own and an output without a bias."""

from tests.families.models.case import VOCAB, Case

SEED_OSS = {
    "model_type": "seed_oss",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}

CASES = (
    Case("seed-oss", {**SEED_OSS, "rope_theta": 1e7}),
    Case("seed-oss-no-biases", {**SEED_OSS, "attention_bias": False, "tie_word_embeddings": True}),
)
