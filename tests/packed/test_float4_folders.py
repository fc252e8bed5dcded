"""NVFP4 and MXFP4 folders, against the published formats: e2m1 codes, e4m3 and e8m0 scales, read by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from quantkit import convert
from quantkit.measurement.folder_engine import open_folder
from quantkit.quant.float4 import pack_float4
from tests.helpers.tiny import tiny_llama
from tests.packed.test_float8_folders import VALUES as E4M3

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    kinds = {"U8": "u1", "F8_E4M3": "u1", "F32": "<f4", "BF16": "<u2"}
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            values = np.frombuffer(data[8 + length + start : 8 + length + stop], kinds[entry["dtype"]])
            if entry["dtype"] == "BF16":
                values = (values.astype(np.uint32) << 16).view(np.float32)
            tensors[name] = values.reshape(entry["shape"])
    return tensors


def weight_of(stored: dict[str, np.ndarray], linear: str) -> np.ndarray:
    packed, scales = stored[f"{linear}.weight_packed"], stored[f"{linear}.weight_scale"]
    values = E2M1[np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)]
    if f"{linear}.weight_global_scale" in stored:
        factors = E4M3[scales] / float(stored[f"{linear}.weight_global_scale"][0])
    else:
        factors = 2.0 ** (scales.astype(np.float64) - 127)
    return values * np.repeat(factors, values.shape[1] // factors.shape[1], axis=1)


def test_a_float_becomes_the_nearest_code_and_ties_become_even() -> None:
    middles = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    w = np.concatenate([E2M1, middles, np.negative(middles), np.linspace(-9, 9, 99), [0]]).astype(np.float32)
    packed = pack_float4(w[None], np.ones((1, 1), np.float32))[0]
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)
    clipped = np.clip(w, -6, 6)
    distance = np.abs(E2M1[None] - clipped[:, None])
    assert np.array_equal(np.abs(E2M1[codes] - clipped), distance.min(axis=1))
    assert [int(code) & 7 for code in codes[16:23]] == [0, 2, 2, 4, 4, 6, 6]


@pytest.mark.parametrize(("method", "group", "bound"), [("nvfp4a16", 16, 0.11), ("mxfp4a16", 32, 0.14)])
def test_a_folder_is_what_the_format_says(method: str, group: int, bound: float, tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "Tiny", variant="llama3", dtype="bf16", hidden=128)
    assert not convert(source, [method], tmp_path).failed
    folder = tmp_path / f"Tiny-{method.upper()}"
    original, stored = tensors_of(source), tensors_of(folder)
    quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
    weights = quantization["config_groups"]["group_0"]["weights"]
    assert quantization["format"] == f"{method.removesuffix('a16')}-pack-quantized"
    assert (weights["num_bits"], weights["type"], weights["group_size"]) == (4, "float", group)
    assert quantization["config_groups"]["group_0"]["input_activations"] is None
    with open_folder(folder, threads=1) as engine:
        assert engine.kind == method
        for name, expected in original.items():
            linear = name.removesuffix(".weight")
            if f"{linear}.weight_packed" not in stored:
                assert np.array_equal(stored[name], expected)
                continue
            weight = weight_of(stored, linear)
            assert np.sqrt(np.mean((weight - expected) ** 2) / np.mean(expected**2)) < bound
            assert np.allclose(engine.source.whole(name), weight, rtol=1e-6, atol=0)


def test_linears_that_runtimes_merge_share_nvfp4s_global_scale(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "Tiny", hidden=128, dtype="bf16")
    convert(source, ["nvfp4a16"], tmp_path)
    original, stored = tensors_of(source), tensors_of(tmp_path / "Tiny-NVFP4A16")
    for names in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
        places = [f"model.layers.0.{name}" for name in names]
        largest = max(np.abs(original[f"{place}.weight"]).max() for place in places)
        scales = {float(stored[f"{place}.weight_global_scale"][0]) for place in places}
        assert scales == {float(np.float32(448 * 6 / float(largest)))}
