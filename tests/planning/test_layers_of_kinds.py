"""Models whose layers differ in cache or state, at their published sizes, against llama.cpp's account.

Gemma 4: two head sizes, shared caches, per-layer embeddings, experts beside a dense part. LFM2: short convolutions.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.families.published import Published
from tests.planning.test_delta_net import assert_memory_is_llama_cpps, header

pytestmark = pytest.mark.full

_SLIDING, _FULL, _CONVOLUTION = "sliding_attention", "full_attention", "conv"
_GEMMA: dict[str, Any] = {
    "architectures": ["Gemma4ForCausalLM"],
    "model_type": "gemma4_text",
    "attention_k_eq_v": False,
    "enable_moe_block": False,
    "final_logit_softcapping": 30.0,
    "global_head_dim": 512,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "vocab_size": 262144,
    "vocab_size_per_layer_input": 262144,
}
_E2B = {
    **_GEMMA,
    "hidden_size": 1536,
    "hidden_size_per_layer_input": 256,
    "intermediate_size": 6144,
    "layer_types": ([_SLIDING] * 4 + [_FULL]) * 7,
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_hidden_layers": 35,
    "num_key_value_heads": 1,
    "num_kv_shared_layers": 20,
    "sliding_window": 512,
    "use_double_wide_mlp": True,
}
_26B = {
    **_GEMMA,
    "attention_k_eq_v": True,
    "enable_moe_block": True,
    "hidden_size": 2816,
    "hidden_size_per_layer_input": 0,
    "intermediate_size": 2112,
    "layer_types": ([_SLIDING] * 5 + [_FULL]) * 5,
    "max_position_embeddings": 262144,
    "moe_intermediate_size": 704,
    "num_attention_heads": 16,
    "num_experts": 128,
    "num_global_key_value_heads": 2,
    "num_hidden_layers": 30,
    "num_key_value_heads": 8,
    "num_kv_shared_layers": 0,
    "sliding_window": 1024,
    "top_k_experts": 8,
}
_LFM2: dict[str, Any] = {
    "conv_L_cache": 3,
    "conv_bias": False,
    "hidden_size": 2048,
    "max_position_embeddings": 128000,
    "norm_eps": 1e-5,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_theta": 1e6,
    "vocab_size": 65536,
}
_1B = {
    **_LFM2,
    "architectures": ["Lfm2ForCausalLM"],
    "model_type": "lfm2",
    "block_auto_adjust_ff_dim": True,
    "block_ff_dim": 12288,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 256,
    "layer_types": [_FULL if layer in (2, 5, 8, 10, 12, 14) else _CONVOLUTION for layer in range(16)],
    "num_hidden_layers": 16,
}
_8B = {
    **_LFM2,
    "architectures": ["Lfm2MoeForCausalLM"],
    "model_type": "lfm2_moe",
    "intermediate_size": 7168,
    "layer_types": [_FULL if layer in (2, 6, 10, 14, 18, 21) else _CONVOLUTION for layer in range(24)],
    "moe_intermediate_size": 1792,
    "norm_topk_prob": True,
    "num_dense_layers": 2,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "routed_scaling_factor": 1.0,
    "use_expert_bias": True,
}
SHAPES = (
    Published("Gemma-4-E2B", _E2B, 0),
    Published("Gemma-4-26B-A4B", _26B, 0),
    Published("LFM2-1.2B", _1B, 0),
    Published("LFM2-8B-A1B", _8B, 0),
)


@pytest.mark.parametrize("published", SHAPES, ids=lambda model: model.name)
def test_a_model_of_its_published_size_takes_what_llama_cpp_reserves(published: Published, tmp_path: Path) -> None:
    tied = "token_embd.weight" if published.config.get("tie_word_embeddings") else ""
    assert_memory_is_llama_cpps(header(published, tmp_path), counted_twice=tied)
