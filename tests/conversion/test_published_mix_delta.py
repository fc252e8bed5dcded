"""The type mix of models with Gated DeltaNet and a draft layer, at their published sizes."""

import re
from pathlib import Path

import pytest

from tests.conversion import test_published_mix as mix
from tests.families.published import Published

_KINDS = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
_TEXT = {
    "attn_output_gate": True,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "mtp_num_hidden_layers": 1,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "mrope_section": [11, 11, 10],
        "partial_rotary_factor": 0.25,
        "rope_theta": 1e7,
        "rope_type": "default",
    },
    "tie_word_embeddings": False,
    "vocab_size": 248320,
}
_DENSE = {
    **_TEXT,
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "layer_types": _KINDS * 16,
    "linear_num_value_heads": 48,
    "num_attention_heads": 24,
    "num_hidden_layers": 64,
    "num_key_value_heads": 4,
}
_MIXTURE = {
    **_TEXT,
    "architectures": ["Qwen3_5MoeForCausalLM"],
    "model_type": "qwen3_5_moe_text",
    "hidden_size": 2048,
    "layer_types": _KINDS * 10,
    "linear_num_value_heads": 32,
    "moe_intermediate_size": 512,
    "num_attention_heads": 16,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "shared_expert_intermediate_size": 512,
}


def parameters(hidden: int, layers: int, heads: int, kv_heads: int, value_heads: int, feed_forward: int) -> int:
    """As transformers' classes have them, and a draft layer with attention; `feed_forward`: of one layer."""
    keys, values = 16 * 128, value_heads * 128
    channels = 2 * keys + values
    linear = hidden * (channels + 2 * values + 2 * value_heads) + 4 * channels + 2 * value_heads + 128
    full = hidden * 256 * (3 * heads + 2 * kv_heads) + 2 * 256
    own = feed_forward + 2 * hidden
    draft = full + own + 2 * hidden * hidden + 3 * hidden
    return layers // 4 * (3 * linear + full) + layers * own + draft + (2 * 248320 + 1) * hidden


SHAPES = (
    Published("Qwen3.5-27B", _DENSE, parameters(5120, 64, 24, 4, 48, 3 * 5120 * 17408)),
    Published(
        "Qwen3.6-35B-A3B",
        _MIXTURE,
        parameters(2048, 40, 16, 2, 32, 256 * 3 * 2048 * 512 + 256 * 2048 + 3 * 2048 * 512 + 2048),
    ),
)


@pytest.mark.parametrize("published", SHAPES, ids=lambda model: re.sub(r"\W+", "-", model.name))
def test_every_file_type_mixes_a_published_model_as_llama_cpp_does(published: Published, tmp_path: Path) -> None:
    mix.test_every_file_type_mixes_a_published_model_as_llama_cpp_does(published, tmp_path)
