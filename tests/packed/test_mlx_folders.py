"""MLX folders, against arrays that mlx itself made, and against its published formula: w = q * scale + bias."""

import json
from pathlib import Path

import numpy as np
import pytest

from quantkit import convert
from quantkit.families import reference_logits
from quantkit.measurement.folder_engine import open_folder
from quantkit.packed.packing import pack_stream
from quantkit.quant.affine import round_affine
from tests.families.expected import write_checkpoint
from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama

MADE_BY_MLX = json.loads(Path(__file__).with_name("mlx_quantize.json").read_text())
KINDS = {"U32": "<u4", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@pytest.mark.parametrize("bits", [3, 4, 5, 6, 8])
def test_the_bytes_are_those_of_mlx(bits: int) -> None:
    w = np.frombuffer(bytes.fromhex(MADE_BY_MLX["w"]), "<f4").reshape(MADE_BY_MLX["shape"])
    made, expected = round_affine(w, bits, 32), MADE_BY_MLX[str(bits)]
    assert pack_stream(made.q, bits).tobytes().hex() == expected["weight"]
    assert made.scales.tobytes().hex() == expected["scales"]
    assert (made.biases + np.float32(0)).tobytes().hex() == expected["biases"]


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        start, stop = entry["data_offsets"]
        values = np.frombuffer(data[8 + length + start : 8 + length + stop], KINDS[entry["dtype"]])
        if entry["dtype"] == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def dequantized(stored: dict[str, np.ndarray], linear: str, bits: int, group: int) -> np.ndarray:
    words = stored[f"{linear}.weight"]
    count = words.shape[1] * 32 // bits
    streams = [int.from_bytes(row.tobytes(), "little") for row in words]
    q = np.array([[stream >> bits * k & (1 << bits) - 1 for k in range(count)] for stream in streams], np.float32)
    scales, biases = (np.repeat(stored[f"{linear}.{part}"], group, axis=1) for part in ("scales", "biases"))
    return (q * scales + biases).astype(np.float32)


@pytest.mark.parametrize(("bits", "group"), [(4, 64), (3, 32), (5, 64), (6, 128), (8, 64)])
def test_a_folder_is_what_mlx_lm_reads(bits: int, group: int, tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "Tiny", variant="llama3", dtype="bf16", hidden=128)
    given = () if group == 64 else ("--group-size", str(group))
    done = quantkit("convert", source, "-t", f"mlx-{bits}bit", *given, "-o", tmp_path)
    assert done.code == 0, done.stderr
    folder = tmp_path / f"Tiny-MLX-{bits}bit"
    config, stored = json.loads((folder / "config.json").read_text()), tensors_of(folder)
    expected = {"group_size": group, "bits": bits, "mode": "affine"}
    assert config["quantization"] == config["quantization_config"] == expected
    original = tensors_of(source)
    plain = {}
    for name, values in original.items():
        linear = name.removesuffix(".weight")
        quantized = f"{linear}.scales" in stored
        assert quantized == name.endswith("_proj.weight")
        plain[name] = dequantized(stored, linear, bits, group) if quantized else stored[name]
        # half a step of the widest group, and the rounding of its scale and bias to bfloat16
        width = np.abs(values).max() * 2
        limit = 2 * width / ((1 << bits) - 1) + width * 2**-7 if quantized else 0
        assert np.abs(plain[name] - values).max() <= limit
    tokens = list(range(3, 35))
    logits = reference_logits(plain.__getitem__, config, tokens, names=plain.keys())
    with open_folder(folder, threads=1) as engine:
        assert engine.kind == f"mlx-{bits}bit"
        ours = reference_logits(engine.source.whole, config, tokens, names=engine.source.tensors.keys())
    assert np.allclose(ours, logits, atol=1e-4 * logits.std())
    assert "mlx" in quantkit("inspect", folder).stdout
    assert quantkit("card", folder).code == 0
    assert "mlx_lm.generate" in (folder / "README.md").read_text()


def test_one_pass_writes_a_folder_and_a_gguf_and_a_plan_knows_the_size(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "Tiny", hidden=128)
    result = convert(source, ["mlx-4bit", "fp8", "q4_0"], tmp_path)
    assert not result.failed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Tiny", "Tiny-FP8", "Tiny-GGUF", "Tiny-MLX-4bit"]
    planned = json.loads(quantkit("plan", source, "-t", "mlx-4bit", "--format", "json").stdout)["types"]
    assert planned[0]["bytes"] == (tmp_path / "Tiny-MLX-4bit" / "model.safetensors").stat().st_size


def test_what_mlx_lm_would_not_read_is_refused(tmp_path: Path) -> None:
    moe, dense = write_checkpoint("qwen2moe", tmp_path / "Moe"), tiny_llama(tmp_path / "Tiny", hidden=128)
    for source, arguments, code, message in (
        (moe, (), 1, "wants all experts of a layer in one tensor"),
        (dense, ("--group-size", "100"), 2, "MLX has groups of 32, 64, 128, not 100; choose one by --group-size"),
    ):
        done = quantkit("convert", source, "-t", "mlx-4bit", *arguments, "-o", tmp_path)
        assert done.code == code
        assert message in " ".join(done.stderr.split()) and "--skip" not in done.stderr
