"""MiniMax M3: blocks of keys chosen for each key head, a dense first layer, gpt-oss's activation, a shared expert."""

from typing import Any

from tests.families.models.case import VOCAB, Case, Tensors
from tests.families.models.qwen_vision import AUTO

TEXT: dict[str, Any] = {
    "architectures": ["MiniMaxM3SparseForCausalLM"],
    "model_type": "minimax_m3_vl_text",
    "bos_token_id": 1,
    "dense_intermediate_size": 96,
    "eos_token_id": 2,
    "head_dim": 32,
    "hidden_act": "swigluoai",
    "hidden_size": 64,
    "intermediate_size": 32,
    "max_position_embeddings": 512,
    "moe_layer_freq": [0, 1, 1],
    "n_shared_experts": 1,
    "num_attention_heads": 4,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "num_local_experts": 6,
    "qk_norm_type": "per_head",
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000000,
    "rotary_dim": 16,
    "partial_rotary_factor": 0.5,
    "routed_scaling_factor": 2.0,
    "scoring_func": "sigmoid",
    "shared_intermediate_size": 32,
    # blocks of two of a test's tokens, so that a query attends to six of sixteen
    "sparse_attention_config": {
        "use_sparse_attention": True,
        "sparse_index_dim": 32,
        "sparse_num_index_heads": 2,
        "sparse_topk_blocks": 3,
        "sparse_block_size": 2,
        "sparse_local_block": 1,
        "sparse_attention_freq": [0, 1, 1],
    },
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "use_gemma_norm": True,
    "use_qk_norm": True,
    "use_routing_bias": True,
    "vocab_size": VOCAB,
}
MINIMAX_M3: dict[str, Any] = {
    "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
    "model_type": "minimax_m3_vl",
    "image_token_index": 280,
    "video_token_index": 281,
    "projector_hidden_size": 48,
    "text_config": TEXT,
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    },
}


def text_alone(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """The text model by itself."""
    return config["text_config"], {
        name.removeprefix("language_model."): values
        for name, values in tensors.items()
        if name.startswith("language_model.")
    }


# a seed of which no block's score is so near another's that half precision changes the choice
CASES = (
    Case("minimax-m3", MINIMAX_M3, newest=True, auto=AUTO, raw_config=True, seed=1),
    Case("minimax-m3-text", MINIMAX_M3, newest=True, auto=AUTO, publish=text_alone, raw_config=True, seed=1),
)
