"""W8A8 and W4A4 folders: what is stored, and logits with activations rounded as a runtime rounds them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from quantkit.api import convert
from quantkit.outputs.calibration import CalibrationRequest
from quantkit.outputs.request import ConvertOptions
from quantkit.packed.reader import open_quantized
from tests.helpers.command import quantkit
from tests.helpers.runtime import runtime_logits
from tests.helpers.tiny import tiny_llama
from tests.packed.test_float4_folders import E2M1
from tests.packed.test_float8_folders import tensors_of

TOKENS = list(range(3, 27))
OPTIONS = ConvertOptions(threads=1, calibration=CalibrationRequest(samples=8, seq_len=64, chat=False))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("activations") / "Tiny"
    return tiny_llama(folder, variant="llama3", dtype="bf16", hidden=128, intermediate=192)


@pytest.fixture(scope="module")
def folders(source: Path) -> dict[str, Path]:
    for method in ("w8a8", "w4a4"):
        result = convert(source, [method], source.parent, OPTIONS)
        assert not result.failed
        assert [check.status for check in result.outputs[0].checks] == ["passed"] * 4
    return {"w8a8": source.parent / "Tiny-W8A8", "w4a4": source.parent / "Tiny-W4A4"}


def int8(x: np.ndarray, overall: np.ndarray) -> np.ndarray:
    step = np.abs(x).max(axis=1, keepdims=True) / np.float32(127.5)
    return np.clip(np.rint(x / step), -128, 127) * step


def nvfp4(x: np.ndarray, overall: np.ndarray) -> np.ndarray:
    groups = x.reshape(len(x), -1, 16)
    scale = np.minimum(overall * np.abs(groups).max(axis=2) / np.float32(6), 448).astype(ml_dtypes.float8_e4m3fn)
    step = (scale.astype(np.float32) / overall)[:, :, None]
    ratio = groups / np.where(step > 0, step, np.inf)
    values = np.sort(np.unique(E2M1))
    nearest = values[np.abs(ratio[..., None] - values).argmin(axis=-1)]
    return (nearest * step).reshape(x.shape)


@pytest.mark.parametrize(("method", "rounding"), [("w8a8", int8), ("w4a4", nvfp4)])
def test_logits_have_the_error_of_rounded_activations(
    method: str, rounding: Callable[[np.ndarray, np.ndarray], np.ndarray], folders: dict[str, Path]
) -> None:
    with open_quantized(folders[method]) as opened:
        assert opened.round_input is not None

        def rounded(name: str, x: np.ndarray) -> np.ndarray:
            if name not in opened.linears:
                return x
            overall = opened.stored(f"{name}.input_global_scale") if method == "w4a4" else np.ones(1)
            return rounding(x, overall).astype(np.float32)

        ours, expected, plain = (runtime_logits(opened, TOKENS, how) for how in (opened.round_input, rounded, None))
    # the first token's inputs are equal; later ones may lie on a tie
    assert np.abs(ours[0] - expected[0]).max() < 1e-3 * expected.std()
    assert np.abs(ours[0] - plain[0]).max() > 1e-2 * expected.std()


def test_w8a8_stores_integers_with_positive_scales_of_rows_and_folds_its_scales_without_a_change(
    source: Path, folders: dict[str, Path]
) -> None:
    stored, original = tensors_of(folders["w8a8"]), tensors_of(source)
    config = json.loads((folders["w8a8"] / "config.json").read_text())["quantization_config"]
    group = config["config_groups"]["group_0"]
    assert (config["format"], group["weights"]["strategy"]) == ("int-quantized", "channel")
    assert group["input_activations"]["dynamic"] is True
    linears = [name.removesuffix(".weight_scale") for name in stored if name.endswith(".weight_scale")]
    assert len(linears) == 14
    for name in linears:
        weight, scale = stored[f"{name}.weight"], stored[f"{name}.weight_scale"].astype(np.float32)
        assert np.array_equal(weight, np.rint(weight)) and scale.shape == (len(weight), 1) and (scale > 0).all()
        assert np.abs(weight).max() >= 126
    # the norm takes the inverse of the factor of the columns: the weights behind it are the source's within rounding
    at = "model.layers.0."
    factor = original[f"{at}input_layernorm.weight"].astype(float) / stored[f"{at}input_layernorm.weight"].astype(float)
    q = stored[f"{at}self_attn.q_proj.weight"] * stored[f"{at}self_attn.q_proj.weight_scale"].astype(float)
    expected = original[f"{at}self_attn.q_proj.weight"].astype(float)
    assert np.square(q / factor - expected).mean() < 1e-4 * np.square(expected).mean()


def test_w4a4_has_the_weights_of_nvfp4a16_and_one_input_scale_for_the_linears_of_an_input(
    source: Path, folders: dict[str, Path]
) -> None:
    convert(source, ["nvfp4a16"], source.parent, ConvertOptions(threads=1))
    convert(source, ["w4a4"], source.parent / "nearest", replace(OPTIONS, rounding="nearest"))
    plain, nearest = (tensors_of(source.parent / name) for name in ("Tiny-NVFP4A16", "nearest/Tiny-W4A4"))
    assert all(np.array_equal(nearest[name], values) for name, values in plain.items())
    # by default errors are fed back: other floats, and for some groups other scales
    stored = tensors_of(folders["w4a4"])
    own = {name.rpartition(".")[2] for name in plain if not np.array_equal(stored[name], plain[name])}
    assert own == {"weight_packed", "weight_scale"} and stored.keys() == nearest.keys()
    errors = [
        json.loads((folder / "quantkit.json").read_text())["outputs"]["Tiny-W4A4"]["relative_error"]
        for folder in (folders["w4a4"], source.parent / "nearest" / "Tiny-W4A4")
    ]
    assert all(errors[0][name] < 0.8 * errors[1][name] for name in errors[1])
    scales = {name: float(stored[name][0]) for name in stored.keys() - plain.keys()}
    assert len(scales) == 14 and all(name.endswith(".input_global_scale") for name in scales)
    at = "model.layers.1.self_attn."
    assert len({scales[f"{at}{name}_proj.input_global_scale"] for name in "qkv"}) == 1


def test_both_are_read_as_sources_measured_and_described(folders: dict[str, Path], tmp_path: Path) -> None:
    for method, folder in folders.items():
        done = quantkit("gguf", folder, "-t", "q8_0", "-o", tmp_path)
        assert done.code == 0, done.stderr
        done = quantkit("inspect", folder, "--format", "json")
        assert json.loads(done.stdout)["origin"]["type"] == method.upper()


def test_two_outputs_that_scale_channels_do_not_go_together(source: Path, tmp_path: Path) -> None:
    done = quantkit("convert", source, "-t", "awq", "-t", "w8a8", "-o", tmp_path)
    assert done.code == 2
    assert "awq and w8a8 both scale the channels of the weights" in done.stderr
