"""The type mix of the older architectures at their published sizes; llama.cpp has rules of its own for Falcon."""

import re
from pathlib import Path

import pytest

from tests.conversion import test_published_mix as mix
from tests.families.published import MISSION, Published

_OLMOE = {
    "architectures": ["OlmoeForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "model_type": "olmoe",
    "num_attention_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 16,
    "num_key_value_heads": 16,
    "vocab_size": 50304,
}
_FALCON = {
    "alibi": False,
    "architectures": ["FalconForCausalLM"],
    "hidden_size": 4544,
    "model_type": "falcon",
    "multi_query": True,
    "num_attention_heads": 71,
    "num_hidden_layers": 32,
    "num_kv_heads": 71,
    "parallel_attn": True,
    "vocab_size": 65024,
}
_GPT2 = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
}
SHAPES = (
    next(model for model in MISSION if "BLOOM" in model.name),
    Published("Falcon-7B", _FALCON, 6_921_720_704),
    Published("GPT-2", _GPT2, 124_439_808),
    Published("OLMoE-1B-7B", _OLMOE, 6_919_161_856),
)


@pytest.mark.parametrize("published", SHAPES, ids=lambda model: re.sub(r"\W+", "-", model.name))
def test_every_file_type_mixes_an_older_architecture_as_llama_cpp_does(published: Published, tmp_path: Path) -> None:
    mix.test_every_file_type_mixes_a_published_model_as_llama_cpp_does(published, tmp_path)
