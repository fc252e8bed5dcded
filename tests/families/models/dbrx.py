"""DBRX: experts under one another in one tensor, and limits on queries, keys and values."""

from typing import Any

from tests.families.models.case import VOCAB, Case

DBRX: dict[str, Any] = {
    "architectures": ["DbrxForCausalLM"],
    "model_type": "dbrx",
    "attn_config": {"clip_qkv": 1.5, "kv_n_heads": 2, "rope_theta": 500000.0},
    "d_model": 64,
    "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    "max_seq_len": 512,
    "n_heads": 4,
    "n_layers": 3,
    # transformers 5 reads the base here and not in attn_config
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
CASES = (Case("dbrx", DBRX, newest=True),)
