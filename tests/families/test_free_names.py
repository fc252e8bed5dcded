"""Families that share a graph with another one: what they refuse, and which one a config without a class is of."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import CheckpointError, QuantkitError, UnsupportedError
from quantkit.families import complete_architecture, find_family, left_out
from tests.families.expected import expected, write_checkpoint

REFUSED: list[tuple[str, dict[str, Any], type[QuantkitError], str]] = [
    ("kormo", {"head_dim": 32}, UnsupportedError, "head_dim is 32"),
    ("dots-ocr", {"attention_bias": False}, UnsupportedError, "attention_bias is false"),
    ("solar-open", {"use_qk_norm": True}, UnsupportedError, "use_qk_norm is true"),
    ("solar-open", {"first_k_dense_replace": 1}, UnsupportedError, "first_k_dense_replace is 1"),
    ("sarvam-moe", {"partial_rotary_factor": 0.5}, UnsupportedError, "partial_rotary_factor is 0.5"),
    ("exaone-moe", {"n_group": 2}, UnsupportedError, "n_group is 2"),
    ("exaone-moe", {"sliding_window": None}, CheckpointError, "has no sliding_window"),
    ("exaone-moe", {"mlp_layer_types": ["sparse"] * 5}, UnsupportedError, "mlp_layer_types is"),
    ("exaone-moe", {"num_experts_per_tok": 9}, CheckpointError, "num_experts_per_tok 9 is more than num_experts 8"),
    ("deepseek-moe", {"norm_topk_prob": True}, UnsupportedError, "norm_topk_prob is true"),
    ("deepseek-moe", {"moe_layer_freq": 2}, UnsupportedError, "moe_layer_freq is 2"),
    ("deepseek-moe", {"head_dim": 32}, UnsupportedError, "head_dim is 32"),
    ("maincoder", {"use_qk_norm": False}, UnsupportedError, "use_qk_norm is false"),
    ("codeshell", {"n_inner": 128}, UnsupportedError, "n_inner is 128"),
    ("codeshell", {"position_embedding_type": "learned_absolute"}, UnsupportedError, "position_embedding_type is"),
    ("mpt", {"attn_config": {"alibi": False}}, UnsupportedError, "alibi is false"),
    ("mpt", {"attn_config": {"qk_ln": True}}, UnsupportedError, "qk_ln is true"),
    ("mpt", {"attn_config": {"alibi_bias_max": 16}}, UnsupportedError, "alibi_bias_max is 16"),
    ("mpt", {"logit_scale": 0.5}, UnsupportedError, "logit_scale is 0.5"),
]


@pytest.mark.parametrize(("name", "change", "error", "words"), REFUSED)
def test_a_setting_that_llama_cpp_does_not_run_is_refused(
    name: str, change: dict[str, Any], error: type[QuantkitError], words: str
) -> None:
    config = expected(name).config
    family = find_family(config)
    family.keys(family.gguf_arch, family.sizes(config))
    with pytest.raises(error, match=words):
        family.keys(family.gguf_arch, family.sizes({**config, **change}))


@pytest.mark.parametrize("name", ["paddleocr-vl", "qwen3-asr"])
def test_rope_without_sections_is_refused(name: str) -> None:
    config = expected(name).config
    text = {
        key: value for key, value in config["text_config"].items() if key not in ("rope_scaling", "rope_parameters")
    }
    with pytest.raises(CheckpointError, match="mrope_section None"):
        find_family(config).sizes({**config, "text_config": text})


@pytest.mark.parametrize(("key", "words"), [("xdrope_section", "has sections None"), ("alpha", "has alpha None")])
def test_rope_of_hunyuan_ocr_without_sections_or_alpha_is_refused(key: str, words: str) -> None:
    config = expected("hunyuan-vl").config
    rope = {name: value for name, value in config["text_config"]["rope_scaling"].items() if name != key}
    with pytest.raises(CheckpointError, match=words):
        find_family(config).sizes({**config, "text_config": {**config["text_config"], "rope_scaling": rope}})


def test_another_scaling_of_hunyuan_ocrs_rope_is_refused() -> None:
    config = expected("hunyuan-vl").config
    rope = {**config["text_config"]["rope_scaling"], "type": "yarn"}
    with pytest.raises(UnsupportedError, match="rope_type is 'yarn'"):
        find_family(config).sizes({**config, "text_config": {**config["text_config"], "rope_scaling": rope}})


@pytest.mark.parametrize(
    ("name", "architecture"), [("bailingmoe", "BailingMoeForCausalLM"), ("bailingmoe2", "BailingMoeV2ForCausalLM")]
)
def test_settings_tell_the_generations_of_ling_apart_where_no_class_is_named(name: str, architecture: str) -> None:
    config = {key: value for key, value in expected(name).config.items() if key != "architectures"}
    assert config["model_type"] == "bailing_moe"
    assert complete_architecture(config)["architectures"] == [architecture]


@pytest.mark.parametrize("name", ["janus", "sarashina2-vision", "step3-vl", "qwen2.5-omni", "youtu-vl", "phi4-vision"])
def test_tensors_of_towers_are_left_out_and_named(name: str, tmp_path: Path) -> None:
    with open_checkpoint(str(write_checkpoint(name, tmp_path))) as checkpoint:
        family = find_family(checkpoint.config)
        (sentence,) = left_out(family, family.sizes(checkpoint.config, checkpoint.tensors), checkpoint.tensors)
    towers = [key for key in checkpoint.tensors if key not in expected(name).native["layout"]]
    assert "left out" in sentence and "this GGUF holds the text model only" in sentence
    assert any(key in sentence for key in towers)


def test_the_bias_of_the_choice_of_experts_is_stored_without_its_mean(tmp_path: Path) -> None:
    """The choice stays: every score gets the same difference (arXiv 2408.15664 adds the bias to all scores)."""
    values = np.array([0.5, -0.25, 1.0, 2.75], np.float32)
    (rule,) = {rule for rule in find_family(expected("sarvam-moe").config).rules if rule.adjust and not rule.draft}
    assert rule.adjust is not None
    centred = rule.adjust(values[None])
    np.testing.assert_array_equal(centred, (values - 1.0)[None])
    assert (np.argsort(centred[0]) == np.argsort(values)).all()
