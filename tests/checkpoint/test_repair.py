"""What tools leave in a checkpoint is undone and told where that is exact, and refused by the tool's name elsewhere."""

import json
from pathlib import Path

import numpy as np
import pytest

from quantkit.checkpoint import Checks, open_checkpoint
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families import check_config, complete_architecture, find_family
from tests.checkpoint.files import refusal, single, tensors

LINEAR = "model.layers.0.mlp.up_proj"
ATTENTION = "model.layers.0.self_attn"


@pytest.mark.parametrize("prefix", ["base_model.model.", "_orig_mod.", "module.", "module._orig_mod."])
def test_a_prefix_of_every_tensor_is_taken_off_and_told(tmp_path: Path, prefix: str) -> None:
    arrays = tensors()
    with open_checkpoint(str(single(tmp_path, {prefix + name: array for name, array in arrays.items()}))) as opened:
        assert set(opened.tensors) == set(arrays)
        assert len(opened.notes) == 1 and "prefix is taken off" in opened.notes[0]
        for name, array in arrays.items():
            rows = opened.read_rows(name, 0, opened.tensors[name].n_rows)
            np.testing.assert_array_equal(rows.reshape(array.shape), array)


def test_the_wrappers_of_fsdp_around_layers_are_taken_off(tmp_path: Path) -> None:
    name = "_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.mlp.up_proj.weight"
    with open_checkpoint(str(single(tmp_path, {name: np.ones((2, 2), np.float32)}))) as opened:
        assert list(opened.tensors) == [f"{LINEAR}.weight"]
        assert "_checkpoint_wrapped_module." in opened.notes[0]


def test_a_prefix_of_some_tensors_only_stays(tmp_path: Path) -> None:
    arrays = {**tensors(), "module.extra": np.ones(2, np.float32)}
    with open_checkpoint(str(single(tmp_path, arrays))) as opened:
        assert set(opened.tensors) == set(arrays) and opened.notes == ()


@pytest.mark.parametrize("name", ["k_scale", "v_scale", "k_proj.k_scale", "v_proj.v_scale", "k_proj.output_scale"])
def test_the_scales_of_an_f8_kv_cache_are_left_out_and_told(tmp_path: Path, name: str) -> None:
    arrays = {**tensors(), f"{ATTENTION}.{name}": np.ones(1, np.float32)}
    with open_checkpoint(str(single(tmp_path, arrays))) as opened:
        assert set(opened.tensors) == set(tensors())
        assert opened.notes == (f"scales of an f8 KV cache are left out (1, such as '{ATTENTION}.{name}')",)


@pytest.mark.parametrize(
    "setting",
    [
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"quantization_config": {"load_in_8bit": True}},
        {"quantization_config": {"group_size": 64, "bits": 4}, "quantization": {"group_size": 64, "bits": 4}},
        {"text_config": {"quantization_config": {"quant_method": "bitsandbytes"}}},
    ],
)
def test_a_16_bit_merge_with_a_stale_quantization_config_opens_and_tells_it(
    tmp_path: Path, setting: dict[str, object]
) -> None:
    with open_checkpoint(str(single(tmp_path, **setting))) as opened:
        assert "quantization_config" not in json.dumps(opened.config) and "quantization" not in opened.config
        assert len(opened.notes) == 1 and "this setting is ignored" in opened.notes[0]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({f"{LINEAR}.SCB": ("f", (4,))}, "by bitsandbytes in 8 bit"),
        ({f"{LINEAR}.weight.absmax": ("u1", (4,))}, "by bitsandbytes in 4 bit"),
        ({f"{LINEAR}.weight.quant_state.bitsandbytes__nf4": ("u1", (4,))}, "by bitsandbytes in 4 bit"),
        (
            {f"{LINEAR}.weight": ("u4", (4, 2)), f"{LINEAR}.scales": ("f", (4, 1)), f"{LINEAR}.biases": ("f", (4, 1))},
            "by MLX (it has",
        ),
        ({f"{LINEAR}.weight": ("u1", (4, 2)), f"{LINEAR}.weight_scale_2": ("f", (1,))}, "by NVIDIA ModelOpt"),
    ],
)
def test_packed_weights_are_refused_by_the_name_of_their_tool(
    tmp_path: Path, extra: dict[str, tuple[str, tuple[int, ...]]], words: str
) -> None:
    arrays = {name: np.ones(shape, kind) for name, (kind, shape) in extra.items()}
    assert words in refusal(single(tmp_path, {**tensors(), **arrays}), UnsupportedError)


def test_8_bit_weights_of_bitsandbytes_without_their_scales_are_refused(tmp_path: Path) -> None:
    arrays = {**tensors(), f"{LINEAR}.weight": np.ones((4, 4), np.int8)}
    folder = single(tmp_path, arrays, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    assert f"linear '{LINEAR}' of" in (message := refusal(folder, CheckpointError)) and "has no SCB" in message


@pytest.mark.parametrize("name", [f"{LINEAR}.lora_A.default.weight", f"{LINEAR}.base_layer.weight"])
def test_an_adapter_that_is_not_merged_is_refused(tmp_path: Path, name: str) -> None:
    arrays = {f"base_model.model.{name}": np.ones((2, 2), np.float32)}
    assert "not merged" in refusal(single(tmp_path, arrays), CheckpointError)


def test_weights_that_fsdp_flattened_are_refused_with_the_way_out(tmp_path: Path) -> None:
    arrays = {"_fsdp_wrapped_module._flat_param": np.ones(8, np.float32)}
    assert "FULL_STATE_DICT" in refusal(single(tmp_path, arrays), CheckpointError)


def test_the_empty_tensors_of_zero_3_are_named_with_the_way_out(tmp_path: Path) -> None:
    arrays = {**tensors(), "model.embed_tokens.weight": np.ones(0, np.float32)}
    message = refusal(single(tmp_path, arrays), CheckpointError)
    assert "1 of 2 tensors" in message and "zero_to_fp32.py" in message


@pytest.mark.parametrize(
    ("model_type", "named", "expected"),
    [
        ("llama", None, "LlamaForCausalLM"),
        ("mistral", [], "MistralForCausalLM"),
        ("qwen2_moe", None, "Qwen2MoeForCausalLM"),
        ("deepseek_v3", None, "DeepseekV3ForCausalLM"),
        ("gemma3_text", None, "Gemma3ForCausalLM"),
        ("gpt2", None, "GPT2LMHeadModel"),
        ("gpt_oss", None, "GptOssForCausalLM"),
        ("llama", ["FSDPLlamaForCausalLM"], "LlamaForCausalLM"),
        ("qwen3", ["PeftModelForCausalLM"], "Qwen3ForCausalLM"),
        ("llama", ["NovelForCausalLM"], "NovelForCausalLM"),
    ],
)
def test_a_missing_or_wrapper_architecture_is_that_of_the_model_type(
    model_type: str, named: list[str] | None, expected: str
) -> None:
    completed = complete_architecture({"model_type": model_type, "architectures": named})
    assert completed["architectures"] == [expected]


def test_every_family_is_found_by_the_model_types_it_has_defaults_for() -> None:
    from quantkit.families import all_families

    families = all_families()
    for model_type in {name for family in families for name in family.defaults}:
        # two releases of one publisher may share a model_type
        assert model_type in find_family({"model_type": model_type}).defaults


def test_an_architecture_taken_from_the_model_type_is_told(tmp_path: Path) -> None:
    from tests.helpers.tiny import tiny_llama

    folder = tiny_llama(tmp_path / "model", variant="llama3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": None}))
    with open_checkpoint(str(folder), checks=Checks(check_config)) as opened:
        assert opened.config["architectures"] == ["LlamaForCausalLM"]
        assert opened.notes == ("config.json names no architecture; LlamaForCausalLM is taken",)
