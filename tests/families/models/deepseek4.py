"""DeepSeek-V4: three kinds of attention, streams, and experts in MXFP4 as published, or unpacked."""

from typing import Any

import numpy as np

from tests.families.models.case import VOCAB, Case, Tensors
from tests.families.models.mxfp4 import to_mxfp4

BASE: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 0,
    "compress_ratios": [0, 4, 128, 4, 0],
    "compress_rope_theta": 160000,
    "eos_token_id": 2,
    "hc_eps": 1e-6,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 64,
    "index_head_dim": 64,
    # of fewer heads, many scores are exactly 0, and llama.cpp breaks ties otherwise
    "index_n_heads": 16,
    # fewer than the compressed tokens of a test, so that the choice is seen
    "index_topk": 2,
    "max_position_embeddings": 1024,
    "model_type": "deepseek_v4",
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts_per_tok": 3,
    "num_hash_layers": 1,
    "num_hidden_layers": 4,
    "num_key_value_heads": 1,
    "num_nextn_predict_layers": 1,
    "o_groups": 2,
    "o_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 16,
        "original_max_position_embeddings": 64,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "sliding_window": 5,
    # so small that it limits some values
    "swiglu_limit": 1.0,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "vocab_size": VOCAB,
}
QUANTIZED = {
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    }
}


# What transformers saves, and DeepSeek's own names.
PUBLISHED = {
    "model.": "",
    "embed_tokens.": "embed.",
    "hc_head.hc_": "hc_head_",
    ".attn.norm.": ".attn.kv_norm.",
}


def renamed(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """DeepSeek's own names."""
    result = {}
    for name, value in tensors.items():
        for saved, published in PUBLISHED.items():
            name = name.replace(saved, published)
        result[name] = value
    return config, result


def packed(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """As published: each expert's linear as int8, two values in a byte, and a scale for 32 values."""
    result = {}
    for name, value in renamed(config, tensors)[1].items():
        if ".ffn.experts." not in name:
            result[name] = value
            continue
        _, blocks, scales = to_mxfp4(value)
        result[name] = blocks.reshape(len(blocks), -1).view(np.int8)
        result[name.replace(".weight", ".scale")] = scales
    return {**config, **QUANTIZED}, result


CASES = (
    # llama.cpp multiplies MXFP4 by activations that it rounds to 8 bits; the second case has the same values unpacked
    Case("deepseek-v4", BASE, publish=packed, newest=True, other_names=True, drift=0.08, seed=1),
    # the converter reads no others than packed experts
    Case("deepseek-v4-unpacked", BASE, publish=renamed, newest=True, other_names=True, converter=False),
    # the names that transformers saves
    Case(
        "deepseek-v4-plain",
        {
            **{key: value for key, value in BASE.items() if key != "rope_scaling"},
            "compress_ratios": [4, 0],
            "num_hash_layers": 0,
            "num_hidden_layers": 2,
            "swiglu_limit": 10.0,
        },
        newest=True,
        other_names=True,
        converter=False,
        seed=1,
    ),
)
