"""Gemma 1, 2 and 3: which configs llama.cpp runs as they are meant, and what of a checkpoint stays behind."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families import canonical_checkpoint, find_family, left_out, token_roles
from quantkit.tokenizer import load_vocabulary
from tests.families.expected import expected, write_checkpoint

GEMMA2_27B = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "hidden_size": 4608,
    "intermediate_size": 36864,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "num_hidden_layers": 46,
    "head_dim": 128,
    "query_pre_attn_scalar": 144,
}
GEMMA3_27B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "num_hidden_layers": 62,
        "head_dim": 128,
        "query_pre_attn_scalar": 168,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"model_type": "siglip_vision_model"},
}


@dataclass(frozen=True)
class Shaped:
    shape: tuple[int, ...]


def text(**change: Any) -> dict[str, Any]:
    return {**GEMMA3_27B, "text_config": {**GEMMA3_27B["text_config"], **change}}


def keys(config: dict[str, Any]) -> dict[str, Any]:
    family = find_family(config)
    return {key.name: key.value for key in family.keys(family.gguf_arch, family.sizes(config))}


def test_the_largest_are_taken_as_published() -> None:
    assert keys(GEMMA2_27B)["gemma2.block_count"] == 46
    values = keys(GEMMA3_27B)
    # what Gemma3TextConfig fills in
    assert (values["gemma3.context_length"], values["gemma3.rope.freq_base"]) == (131072, 1e6)
    assert values["gemma3.rope.scaling.factor"] == 8.0
    assert find_family(GEMMA3_27B).sizes(GEMMA3_27B).vocab == 262208


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**GEMMA2_27B, "num_hidden_layers": 42}, "query_pre_attn_scalar is 144.0, but llama.cpp takes 128"),
        ({**GEMMA2_27B, "query_pre_attn_scalar": 128}, "but llama.cpp takes 144"),
        (text(query_pre_attn_scalar=128), "but llama.cpp takes 168"),
        ({**GEMMA2_27B, "attn_logit_softcapping": None}, "attn_logit_softcapping is None"),
        ({**GEMMA2_27B, "hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ({**GEMMA2_27B, "tie_word_embeddings": False}, "tie_word_embeddings is false"),
        ({**GEMMA2_27B, "rope_scaling": {"type": "linear", "factor": 2}}, "rope scaling 'linear'"),
        (text(rope_scaling={"rope_type": "yarn", "factor": 2.0}), "rope scaling 'yarn'"),
        (text(attn_logit_softcapping=50.0), "attn_logit_softcapping is 50.0"),
        (text(use_bidirectional_attention=True), "use_bidirectional_attention"),
        (text(layer_types=["chunked_attention"] * 62), "chunked_attention"),
        (text(rope_parameters={"sliding_attention": {"rope_type": "linear"}}), "global ones only"),
    ],
)
def test_what_llama_cpp_would_run_otherwise_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        keys(config)


def test_layer_types_of_another_length_are_refused() -> None:
    with pytest.raises(CheckpointError, match="kinds of 62 layers"):
        keys(text(layer_types=["full_attention"]))


def test_the_settings_of_transformers_5_give_the_same_keys() -> None:
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 7000.0},
    }
    newer = text(rope_parameters=rope, rope_scaling=None)
    assert keys(newer) == {**keys(GEMMA3_27B), "gemma3.rope.freq_base_swa": 7000.0}


def test_layers_without_a_window_need_none() -> None:
    assert "gemma3.attention.sliding_window" not in keys(text(layer_types=["full_attention"] * 62))


def test_the_image_tower_is_left_out_in_words() -> None:
    config = expected("gemma3-images").config
    family = find_family(config)
    names = {"model.vision_tower.a": Shaped((1,)), "model.multi_modal_projector.b": Shaped((1,))}
    (note,) = left_out(family, family.sizes(config), names)
    assert "left out 2 tensors (model.vision_tower.a, ...)" in note
    assert "images" in note


@pytest.mark.parametrize("name", ["gemma3-images", "gemma3-images-first"])
def test_the_native_checkpoint_is_the_text_model_alone(name: str, tmp_path: Path) -> None:
    with open_checkpoint(str(write_checkpoint(name, tmp_path / "published"))) as checkpoint:
        family = find_family(checkpoint.config)
        config, tensors = canonical_checkpoint(family, family.sizes(checkpoint.config), checkpoint.tensors)
    native = expected(name).native
    assert config["architectures"] == ["Gemma3ForCausalLM"]
    assert {tensor.name: list(tensor.shape) for tensor in tensors} == native["layout"]
    stated = {key: value for key, value in native["config"].items() if key != "transformers_version"}
    assert {key: config.get(key) for key in stated} == stated


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3"])
def test_add_space_prefix_is_false_and_last_as_the_converter_writes_it_so_nothing_warns(
    name: str, tmp_path: Path
) -> None:
    folder = write_checkpoint(name, tmp_path / name)
    config = expected(name).config
    vocabulary = load_vocabulary(folder, config, roles=token_roles(config))
    assert (vocabulary.keys[-1].key, vocabulary.keys[-1].value) == ("tokenizer.ggml.add_space_prefix", False)
    assert not [warning for warning in vocabulary.warnings if "add_space_prefix" in warning]
