"""PLM: latent attention and two matrices. transformers has no class for it; DeepSeek-V2's is changed into it."""

from typing import Any

from tests.families.models.case import VOCAB, Case, Tensors

_DEEPSEEK: dict[str, Any] = {
    "model_type": "deepseek_v2",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "first_k_dense_replace": 3,
    "hidden_act": "relu2",
    "hidden_size": 64,
    "intermediate_size": 96,
    "kv_lora_rank": 32,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "v_head_dim": 16,
    "vocab_size": VOCAB,
}


def _published(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    stated = {name: value for name, value in _DEEPSEEK.items() if name != "first_k_dense_replace"}
    kept = {name: values for name, values in tensors.items() if "gate_proj" not in name}
    return {**stated, "architectures": ["PLMForCausalLM"], "model_type": "plm", "attention_bias": False}, kept


CASES = (Case("plm", _DEEPSEEK, publish=_published, patch="take_gates_away"),)
