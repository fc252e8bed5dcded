"""DeepSeek-V3.2 and GLM-5: an indexer chooses the tokens that a query attends to."""

from typing import Any

from tests.families.models.case import VOCAB, Case
from tests.families.models.glm4moe import with_further_token

SIZES: dict[str, Any] = {
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 64,
    "index_head_dim": 64,
    "index_n_heads": 8,
    "index_topk": 13,
    "intermediate_size": 96,
    "kv_lora_rank": 32,
    "max_position_embeddings": 512,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "rms_norm_eps": 1e-6,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "v_head_dim": 16,
    "vocab_size": VOCAB,
}
V32 = {
    **SIZES,
    "architectures": ["DeepseekV32ForCausalLM"],
    "model_type": "deepseek_v32",
    "n_group": 4,
    "topk_group": 2,
    "rope_theta": 10000,
}
YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
GLM5 = {
    **SIZES,
    "architectures": ["GlmMoeDsaForCausalLM"],
    "model_type": "glm_moe_dsa",
    "indexer_rope_interleave": True,
    "n_group": 1,
    "rms_norm_eps": 1e-5,
    "rope_interleave": True,
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
    "topk_group": 1,
}

CASES = (
    # the converter wants a tokenizer that adds the first token
    Case("deepseek-v3.2", V32, publish=with_further_token, newest=True, vocabulary=False),
    Case("deepseek-v3.2-yarn", {**V32, "rope_scaling": YARN}, newest=True, vocabulary=False),
    Case("glm-5", GLM5, publish=with_further_token, newest=True, tokenizer="glm-4.5", seed=1),
    Case(
        "glm-5.2",
        {**GLM5, "num_hidden_layers": 5, "indexer_types": ["full", "full", "shared", "shared", "full"]},
        newest=True,
        tokenizer="glm-4.5",
        seed=1,
    ),
)
