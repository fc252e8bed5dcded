"""Hunyuan 4: layers with an indexer and without, experts with limits. llama.cpp rotates neighbours, see `patch`."""

import re
from typing import Any

from tests.families.models.case import VOCAB, Case, Tensors

HY4: dict[str, Any] = {
    "architectures": ["HYV4ForCausalLM"],
    "model_type": "hy_v4",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "first_k_dense_replace": 1,
    "hc_eps": 1e-6,
    "hc_magnitude": 1.5,
    "hc_mult": 4,
    "hidden_act": "silu",
    "hidden_size": 64,
    "index_head_dim": 64,
    "index_n_heads": 8,
    "index_topk": 13,
    "indexer_types": ["full", "full", "shared", "full"],
    "intermediate_size": 96,
    "kv_lora_rank": 32,
    "max_position_embeddings": 512,
    "moe_intermediate_size": 32,
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "pad_token_id": 2,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "routed_scaling_factor": 2.5,
    "swiglu_limit": 1.5,
    "tie_word_embeddings": False,
    "v_head_dim": 16,
    "vocab_size": VOCAB,
}

# transformers' class saves some names otherwise than it reads them
_NAMES = (
    (r"\.hc_pre\.hc_head\.", ".hc_head."),
    (r"\.hc_pre\.(hc_\w+_layer)\.", r".\1.hc_pre."),
    (r"\.mlp\.(shared_experts\.)?linear_gate\.", r".mlp.\1gate_proj."),
)


def _published(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    published = {}
    for name, values in tensors.items():
        for saved, read in _NAMES:
            name = re.sub(saved, read, name)
        published[name] = values
    return config, published


CASES = (Case("hy-v4", HY4, _published, "turn_neighbours", newest=True, seed=1, other_names=True),)
