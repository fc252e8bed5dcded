"""Every family at the sizes that its config class in transformers has by default, which are those of a published model.

The type mix is compared with llama_model_quantize's own, in a dry run over a file without weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from quantkit.families import find_family
from tests.families.class_defaults import GOLDEN, NO_CLASS, all_architectures, classes_say
from tests.families.test_large_shapes import assert_mixes_are_llama_cpps, described

CONFIGS: dict[str, dict[str, Any]] = json.loads(GOLDEN.read_text())
TYPES = ("q4_0", "q4_k_m", "q2_k", "iq4_xs")


_EXAONE_KINDS = [("full" if layer % 4 == 3 else "sliding") + "_attention" for layer in range(64)]
_SECTIONS = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [24, 20, 20]}
# The numbers of each layer's activation, which a checkpoint has as tensors.
_XIELU = {
    f"model.layers.{layer}.mlp.act_fn.{name}": 0.5
    for layer in range(32)
    for name in ("alpha_n", "alpha_p", "beta", "eps")
}
# What published models state and the class leaves out or has otherwise.
STATED: dict[str, dict[str, Any]] = {
    "AfmoeForCausalLM": {"mup_enabled": True},
    "ApertusForCausalLM": {"scalars": _XIELU},
    "BambaForCausalLM": {"attn_layer_indices": [9, 18, 27]},
    "DbrxForCausalLM": {
        "attn_config": {"clip_qkv": 8, "kv_n_heads": 8, "rope_theta": 500000.0},
        "d_model": 6144,
        "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
        "n_heads": 48,
        "n_layers": 40,
    },
    "DeepseekV2ForCausalLM": {"num_experts_per_tok": 6},
    "Dots1ForCausalLM": {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6},
    "Exaone4ForCausalLM": {"num_hidden_layers": 64, "layer_types": _EXAONE_KINDS},
    "Exaone4_5_ForConditionalGeneration": {"num_hidden_layers": 64, "layer_types": _EXAONE_KINDS},
    "HunYuanVLForConditionalGeneration": {
        "rope_parameters": {"rope_type": "dynamic", "alpha": 1000.0, "mrope_section": [16, 16, 16, 16]}
    },
    "Glm4MoeForCausalLM": {"head_dim": 128},
    "GraniteMoeHybridForCausalLM": {"layer_types": ["mamba", "mamba", "mamba", "attention"] * 8},
    "Glm4vMoeForConditionalGeneration": {"head_dim": 128},
    "NemotronHForCausalLM": {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe"] * 8},
    "PaddleOCRVLForConditionalGeneration": {"rope_parameters": {**_SECTIONS, "mrope_section": [16, 24, 24]}},
    "PhimoeForCausalLM": {"attention_bias": True, "lm_head_bias": True},
    "Qwen2VLForConditionalGeneration": {"rope_parameters": _SECTIONS},
    "Qwen2VLModel": {"rope_parameters": _SECTIONS},
    "Qwen2_5_VLForConditionalGeneration": {"rope_parameters": _SECTIONS},
    "Qwen3ASRForConditionalGeneration": {"rope_parameters": _SECTIONS},
    "Qwen3MoeForCausalLM": {"norm_topk_prob": True},
    "Qwen3VLForConditionalGeneration": {"rope_parameters": _SECTIONS},
    "Qwen3VLMoeForConditionalGeneration": {"rope_parameters": _SECTIONS},
}


def published(architecture: str) -> dict[str, Any]:
    """The class's config with what published models state, in the text model's config where there is one."""
    config, stated = CONFIGS[architecture], STATED.get(architecture, {})
    return (
        {**config, "text_config": {**config["text_config"], **stated}} if "text_config" in config else config | stated
    )


# Defaults that transformers 5 changed; checkpoints that state nothing are older.
CHANGED = {
    **dict.fromkeys(
        (f"{kind}.sliding_window" for kind in ("qwen2", "qwen2_moe", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3")), 4096
    ),
    **dict.fromkeys((f"{kind}.sliding_window" for kind in ("qwen3_moe", "qwen3_vl_moe_text")), 4096),
    **dict.fromkeys(("mt5.tie_word_embeddings", "umt5.tie_word_embeddings"), False),
    "olmo3.rope_theta": 10000.0,
    # the class makes a list of it, one width a layer
    "gemma3n_text.intermediate_size": 16384,
    # the class computes the last layer with experts
    "ernie4_5_moe.moe_layer_end_index": -1,
}


def stated_defaults(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The class's settings in one level; the rope of full attention stands for that of all layers."""
    rope = config.get("rope_parameters") or {}
    return {**rope.get("full_attention", rope), **config}


def test_every_architecture_has_the_settings_of_its_class_or_a_reason_to_have_none() -> None:
    """Of a new one, `python -m tests.families.class_defaults` stores the settings."""
    reasons = [name for names in NO_CLASS.values() for name in names]
    assert sorted([*CONFIGS, *reasons]) == all_architectures()
    for name in NO_CLASS["another name of an architecture that has a class"]:
        assert set(find_family({"architectures": [name]}).architectures) & set(CONFIGS), name


@pytest.mark.full
def test_the_stored_settings_are_those_of_transformers() -> None:
    assert classes_say() == CONFIGS


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_what_a_silent_config_means_is_what_transformers_takes(architecture: str) -> None:
    """None stands for a value that the class computes from others."""
    family = find_family({"architectures": [architecture]})
    whole = CONFIGS[architecture]
    # Mistral 3 brings settings of its own where config.json has no text model at all
    text = {} if architecture == "Mistral3ForConditionalGeneration" else whole.get("text_config") or {}
    for config in (whole, text):
        kind, theirs = str(config.get("model_type")), stated_defaults(config)
        ours = {key: CHANGED.get(f"{kind}.{key}", value) for key, value in family.defaults.get(kind, {}).items()}
        theirs = {key: CHANGED.get(f"{kind}.{key}", value) for key, value in theirs.items()}
        different = {
            key: (value, theirs[key])
            for key, value in ours.items()
            if key in theirs and value is not None and theirs[key] != value
        }
        assert not different


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_the_mix_of_types_is_llama_model_quantizes(architecture: str, tmp_path: Path) -> None:
    keys, tensors = described(published(architecture), packed=False)
    assert_mixes_are_llama_cpps(keys, tensors, TYPES, tmp_path / "sparse.gguf")
