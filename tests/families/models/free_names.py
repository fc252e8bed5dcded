"""Models that share a graph with another one under a name of their own."""

from typing import Any

from tests.families.models.case import VOCAB, Case, Tensors, weight

BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
LATENT = {
    **BASE,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "rope_interleave": True,
    "rope_theta": 1e6,
}
YOUTU = {**LATENT, "model_type": "youtu", "attention_bias": False, "tie_word_embeddings": True}
GLM_FLASH = {
    **LATENT,
    "model_type": "glm4_moe_lite",
    "attention_bias": False,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts_per_tok": 3,
    "num_nextn_predict_layers": 0,
    "partial_rotary_factor": 1.0,
    "routed_scaling_factor": 1.8,
    # the published model does not state it; llama.cpp knows that one by its sizes
    "scoring_func": "sigmoid",
    "topk_group": 1,
    "topk_method": "noaux_tc",
}
DOTS1 = {
    **BASE,
    "model_type": "dots1",
    "attention_bias": False,
    "first_k_dense_replace": 1,
    "head_dim": 32,
    "max_window_layers": 3,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "norm_topk_prob": True,
    "num_experts_per_tok": 3,
    "rope_theta": 1e6,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
}
STARCODER2 = {
    **{key: value for key, value in BASE.items() if key != "rms_norm_eps"},
    "model_type": "starcoder2",
    "hidden_act": "gelu_pytorch_tanh",
    "norm_epsilon": 1e-5,
    "num_key_value_heads": 2,
    "rope_theta": 1e5,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "use_bias": True,
}
# Embedding models: saved without a head.
QWEN3_EMBEDDING = {
    **BASE,
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 32,
    "max_window_layers": 3,
    "num_key_value_heads": 2,
    "rope_theta": 1e6,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
}
QWEN2_EMBEDDING = {
    **{key: value for key, value in QWEN3_EMBEDDING.items() if key not in ("head_dim", "attention_bias")},
    "model_type": "qwen2",
    "tie_word_embeddings": False,
}
LLAMA = {**BASE, "model_type": "llama", "num_key_value_heads": 2, "rope_theta": 1e6}
IQUEST = {**LLAMA, "model_type": "iquestcoder", "head_dim": 32, "architectures": ["IQuestCoderForCausalLM"]}


def named_without_prefix(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """As Qwen3-Embedding is published: the class with a head, the names without."""
    return {**config, "architectures": ["Qwen3ForCausalLM"]}, tensors


def with_another_token(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """As GLM-4.7-Flash is published: after the layers one that predicts a token further."""
    last, extra = (f".layers.{config['num_hidden_layers'] - more}." for more in (1, 0))
    further = {name.replace(last, extra): value for name, value in tensors.items() if last in name}
    hidden = config["hidden_size"]
    for name, shape in (("eh_proj", (hidden, 2 * hidden)), ("enorm", (hidden,)), ("hnorm", (hidden,))):
        further[f"model{extra}{name}.weight"] = weight(0, name, shape)
    return {**config, "num_nextn_predict_layers": 1}, tensors | further


CASES = (
    Case("youtu", YOUTU, newest=True),
    Case("glm-4.7-flash", GLM_FLASH, newest=True, seed=1, tokenizer="glm-4.5"),
    # llama.cpp's converter keeps the further layer, which the deepseek2 of the runtime here does not read
    Case("glm-4.7-flash-mtp", GLM_FLASH, with_another_token, converter=False, newest=True, seed=1, tokenizer="glm-4.5"),
    Case("dots1", DOTS1, newest=True, seed=1),
    Case("starcoder2", STARCODER2, newest=True),
    Case("starcoder2-untied", {**STARCODER2, "tie_word_embeddings": False}, newest=True),
    Case("qwen3-model", QWEN3_EMBEDDING, newest=True, auto="AutoModel"),
    Case("qwen3-embedding", QWEN3_EMBEDDING, named_without_prefix, newest=True, auto="AutoModel"),
    Case("qwen2-model", QWEN2_EMBEDDING, newest=True, auto="AutoModel"),
    Case("llama-model", LLAMA, newest=True, auto="AutoModel"),
    Case("iquestcoder", IQUEST, newest=True),
)
