"""Checkpoints that are already quantized, against the matrices that other libraries dequantize.

tests/peers/inside/goldens_*.py made the files in tests/checkpoint/quantized: the tensors as GPTQModel,
compressed-tensors, transformers, bitsandbytes, AutoRound and MLX store them, and what each makes of them.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from demo.safetensors_file import write_safetensors
from quantkit.checkpoint import Checkpoint, open_checkpoint
from quantkit.errors import CheckpointError, QuantkitError, UnsupportedError
from tests.checkpoint.files import CONFIG, refusal, single

FILES = sorted(Path(__file__).with_name("quantized").glob("*.json"))
DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I8": np.dtype("i1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
    "U32": np.dtype("<u4"),
}
# what the library rounds its result to: half a unit in the last place, and as much for its own steps
ROUNDED = {"F32": 1e-6, "F16": 2**-10, "BF16": 2**-7}
CASES: dict[str, dict[str, Any]] = {}
ONE_OF_EACH = (
    "awq",
    "gptq, own bits of some linears",
    "auto-round as auto_gptq",
    "w4a16 asymmetric",
    "nvfp4 of modelopt",
    "nf4 double",
    "bitnet",
    "mlx, own bits of some linears",
)
for _file in FILES:
    CASES |= json.loads(_file.read_text())


def array(stored: list[Any]) -> np.ndarray:
    kind, shape, data = stored
    return np.frombuffer(base64.b64decode(data), DTYPES[kind]).reshape(shape)


def folder_of(case: dict[str, Any], folder: Path, **changes: Any) -> Path:
    """The case as a checkpoint, with an embedding in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: (stored[0], array(stored)) for name, stored in case["tensors"].items()}
    tensors["model.embed_tokens.weight"] = ("F16", np.ones((4, 8), np.float16))
    write_safetensors(folder / "model.safetensors", tensors)
    settings = {**case["settings"], **changes}
    key = "quantization_config" if "quant_method" in settings else "quantization"
    (folder / "config.json").write_text(json.dumps({**CONFIG, key: settings}))
    return folder


def whole(opened: Checkpoint, name: str) -> np.ndarray:
    return opened.read_rows(name, 0, opened.tensors[name].n_rows)


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_reads_as_the_library_that_made_it_dequantizes_it(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    with open_checkpoint(str(folder_of(case, tmp_path / "m"))) as opened:
        assert opened.tensors.keys() == {*case["weights"], "model.embed_tokens.weight"}
        for tensor, stored in case["weights"].items():
            expected = array(stored).astype(np.float32)
            values = whole(opened, tensor)
            assert values.dtype == opened.tensors[tensor].read_dtype == np.float32
            assert values.shape == opened.tensors[tensor].shape == expected.shape
            assert (np.abs(values - expected) <= ROUNDED[stored[0]] * np.abs(expected) + 1e-6 * expected.std()).all()
            pieces = [
                opened.read_rows(tensor, start, min(start + 3, len(values))) for start in range(0, len(values), 3)
            ]
            assert np.array_equal(np.concatenate(pieces), values)


def test_the_user_is_told_in_one_line(tmp_path: Path) -> None:
    for name, words in (("awq", "awq 4 bit, group 64"), ("nf4 double", "bitsandbytes nf4 4 bit")):
        with open_checkpoint(str(folder_of(CASES[name], tmp_path / name))) as opened:
            assert opened.notes == (f"1 weight is quantized ({words}); quantkit dequantizes each as it reads it",)


@pytest.mark.parametrize(
    ("name", "missing", "words"),
    [
        ("awq", "scales", "no scales"),
        ("awq gemv", "qzeros", "no qzeros"),
        ("gptq 4 bit v1", "qzeros", "no qzeros"),
        ("w4a16", "weight_scale", "no weight_scale"),
        ("w8a8 by channel", "weight_scale", "no weight_scale"),
        ("nvfp4", "weight_global_scale", "no weight_global_scale"),
        ("nvfp4", "weight_packed", "no weight_packed"),
        ("nvfp4 of modelopt", "weight_scale", "no weight_scale"),
        ("bitnet", "weight_scale", "no weight_scale"),
        ("int8", "SCB", "no SCB"),
        ("nf4", "weight.absmax", "no weight.absmax"),
        ("nf4 double", "weight.nested_quant_map", "no weight.nested_quant_map"),
        ("nf4", "weight.quant_state.bitsandbytes__nf4", "no quant_state"),
        ("mlx 4 bit", "scales", "no scales and biases"),
        ("mlx mxfp4", "scales", "no scales"),
    ],
)
def test_a_missing_part_is_one_sentence_with_the_linear_and_the_next_step(
    name: str, missing: str, words: str, tmp_path: Path
) -> None:
    case = CASES[name]
    tensors = {tensor: stored for tensor, stored in case["tensors"].items() if tensor != f"layer.{missing}"}
    assert len(tensors) == len(case["tensors"]) - 1
    message = refusal(folder_of({**case, "tensors": tensors}, tmp_path / "m"), CheckpointError)
    assert "linear 'layer'" in message and words in message


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("awq", {"version": "marlin"}, "packed as awq 'marlin'"),
        ("gptq 4 bit v1", {"bits": 5}, "'5' bits"),
        ("gptq, own bits of some linears", {"dynamic": {"+:.*(": {"bits": 8}}}, "expression '.*('"),
        ("w4a16", {"format": "marlin-24"}, "layout 'marlin-24'"),
        ("w4a16", {"config_groups": {}}, "states no group of weights"),
        ("nvfp4 of modelopt", {"quant_algo": "W4A8_AWQ"}, "ModelOpt as 'W4A8_AWQ'"),
        ("nvfp4 of modelopt", {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"a": 1}}, "ModelOpt as 'None'"),
        ("bitnet, scale multiplied", {"quantization_mode": "online"}, "quantization_mode online"),
        ("bitnet", {"use_rms_norm": True}, "use_rms_norm"),
        ("auto-round 4 bit", {"packing_format": "auto_round:llm_compressor"}, "AutoRound as 'int'"),
        ("auto-round 4 bit", {"bits": 16}, "16 bits"),
        ("mlx 4 bit", {"mode": "mxfp8"}, "mode 'mxfp8'"),
        ("int8", {"load_in_8bit": False}, "neither load_in_4bit nor load_in_8bit"),
    ],
)
def test_settings_that_are_not_read_are_one_sentence(
    name: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    assert words in refusal(folder_of(CASES[name], tmp_path / "m", **changes), UnsupportedError)


@pytest.mark.parametrize(
    "state", [b"{", b"[]", b'{"shape": [4], "blocksize": 64}', b'{"shape": [1000000000, 64], "blocksize": 64}']
)
def test_a_damaged_state_of_bitsandbytes_is_one_sentence(state: bytes, tmp_path: Path) -> None:
    case = CASES["nf4"]
    name = "layer.weight.quant_state.bitsandbytes__nf4"
    tensors = {**case["tensors"], name: ["U8", [len(state)], base64.b64encode(state).decode()]}
    assert "layer" in refusal(folder_of({**case, "tensors": tensors}, tmp_path / "m"), CheckpointError)


def test_scales_that_are_not_finite_are_told_when_they_are_read(tmp_path: Path) -> None:
    case = CASES["w4a16"]
    kind, shape, _ = case["tensors"]["layer.weight_scale"]
    nan = np.full(shape, np.nan, DTYPES[kind]).tobytes()
    tensors = {**case["tensors"], "layer.weight_scale": [kind, shape, base64.b64encode(nan).decode()]}
    with (
        open_checkpoint(str(folder_of({**case, "tensors": tensors}, tmp_path / "m"))) as opened,
        pytest.raises(CheckpointError, match=r"'layer\.weight_scale' of .* contains NaN or infinity"),
    ):
        whole(opened, "layer.weight")


def test_settings_in_a_file_beside_config_json_count_where_weights_are_packed(tmp_path: Path) -> None:
    for name, file in (("gptq 4 bit v1", "quantize_config.json"), ("nvfp4 of modelopt", "hf_quant_config.json")):
        case = CASES[name]
        folder = folder_of(case, tmp_path / file)
        settings = {key: value for key, value in case["settings"].items() if key != "quant_method"}
        modelopt = {"producer": {"name": "modelopt"}, "quantization": settings}
        (folder / "config.json").write_text(json.dumps(CONFIG))
        (folder / file).write_text(json.dumps(settings if name.startswith("gptq") else modelopt))
        with open_checkpoint(str(folder)) as opened:
            assert whole(opened, "layer.weight").shape == tuple(case["weights"]["layer.weight"][1])
        plain = single(tmp_path / f"plain {file}")
        (plain / file).write_text(json.dumps(settings))
        with open_checkpoint(str(plain)) as opened:
            assert opened.quantized is None


def _replaced(settings: Any, value: Any) -> Iterator[Any]:
    """The settings with `value` in place of each of theirs, also inside groups of settings."""
    if isinstance(settings, dict):
        for key, inner in settings.items():
            yield {**settings, key: value}
            yield from ({**settings, key: changed} for changed in _replaced(inner, value))
    elif isinstance(settings, list):
        for at in range(len(settings)):
            yield [*settings[:at], value, *settings[at + 1 :]]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_setting_of_another_kind_is_read_or_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    folder = folder_of(case, tmp_path / "m")
    refused = 0
    for value in ({}, [], None, "x", -1, 1e400, [[]], {"x": {}}):
        for settings in _replaced(case["settings"], value):
            key = "quantization_config" if "quant_method" in settings else "quantization"
            (folder / "config.json").write_text(json.dumps({**CONFIG, key: settings}))
            try:
                with open_checkpoint(str(folder)) as opened:
                    for tensor in opened.tensors:
                        whole(opened, tensor)
            except QuantkitError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > 4
