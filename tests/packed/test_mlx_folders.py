"""MLX folders, against arrays that mlx itself made, and against its published formula: w = q * scale + bias."""

import json
from pathlib import Path

import numpy as np
import pytest

from quantkit import convert
from quantkit.checkpoint.dequantize import power_scales
from quantkit.families import open_model, reference_logits
from quantkit.families.base.native import Native
from quantkit.measurement.folder_engine import open_folder
from quantkit.packed.packing import pack_stream
from quantkit.quant.affine import round_affine
from quantkit.quant.float4 import mlx_mxfp4_scales, pack_float4
from tests.families.expected import write_checkpoint
from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama

MADE_BY_MLX = json.loads(Path(__file__).with_name("mlx_quantize.json").read_text())
KINDS = {"U8": "u1", "U32": "<u4", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@pytest.mark.parametrize("bits", [3, 4, 5, 6, 8])
def test_the_bytes_are_those_of_mlx(bits: int) -> None:
    w = np.frombuffer(bytes.fromhex(MADE_BY_MLX["w"]), "<f4").reshape(MADE_BY_MLX["shape"])
    made, expected = round_affine(w, bits, 32), MADE_BY_MLX[str(bits)]
    assert pack_stream(made.q, bits).tobytes().hex() == expected["weight"]
    assert made.scales.tobytes().hex() == expected["scales"]
    assert (made.biases + np.float32(0)).tobytes().hex() == expected["biases"]


def test_the_bytes_of_4_bit_floats_are_those_of_mlx() -> None:
    w = np.frombuffer(bytes.fromhex(MADE_BY_MLX["mxfp4"]["w"]), "<f4").reshape(-1, 64)
    scales = mlx_mxfp4_scales(w)
    assert scales.tobytes().hex() == MADE_BY_MLX["mxfp4"]["scales"]
    words = pack_float4(w, power_scales(scales), as_mlx=True)
    assert words.tobytes().hex() == MADE_BY_MLX["mxfp4"]["weight"]


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
    # a row is one stream of bits, the lowest of each integer first
    stream = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").reshape(len(words), count, bits)
    q = (stream << np.arange(bits, dtype=np.uint8)).sum(axis=2).astype(np.float32)
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


def test_a_folder_of_4_bit_floats_is_what_mlx_lm_reads(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "Tiny", variant="llama3", dtype="bf16", hidden=128)
    assert quantkit("convert", source, "-t", "mlx-mxfp4", "-o", tmp_path).code == 0
    folder = tmp_path / "Tiny-MLX-MXFP4"
    config, stored = json.loads((folder / "config.json").read_text()), tensors_of(folder)
    assert config["quantization"] == {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    values = np.concatenate([magnitudes, -magnitudes])
    with open_folder(folder, threads=1) as engine:
        assert engine.kind == "mlx-mxfp4"
        for name, original in tensors_of(source).items():
            linear = name.removesuffix(".weight")
            if f"{linear}.scales" not in stored:
                continue
            words = stored[name]
            codes = (words[:, :, None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15).reshape(len(words), -1)
            factors = np.exp2(stored[f"{linear}.scales"].astype(np.float32) - 127)
            expected = values[codes] * np.repeat(factors, 32, axis=1)
            assert np.array_equal(engine.source.whole(name), expected)
            assert np.sqrt(np.mean((expected - original) ** 2)) < 0.2 * original.std()
    refused = quantkit("convert", source, "-t", "mlx-mxfp4", "--group-size", "64", "-o", tmp_path / "other")
    assert refused.code == 2 and "32" in refused.sentence


def test_one_pass_writes_a_folder_and_a_gguf_and_a_plan_knows_the_size(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "Tiny", hidden=128)
    result = convert(source, ["mlx-4bit", "fp8", "q4_0"], tmp_path)
    assert not result.failed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Tiny", "Tiny-FP8", "Tiny-GGUF", "Tiny-MLX-4bit"]
    planned = json.loads(quantkit("plan", source, "-t", "mlx-4bit", "--format", "json").stdout)["types"]
    assert planned[0]["bytes"] == (tmp_path / "Tiny-MLX-4bit" / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("name", "stack", "expert"),
    [
        ("mixtral", "block_sparse_moe.switch_mlp.up_proj", "block_sparse_moe.experts.{}.w3"),
        ("qwen3moe-fused-tied", "mlp.switch_mlp.down_proj", "mlp.experts.{}.down_proj"),
        ("dots1", "mlp.experts.gate_proj", "mlp.experts.{}.gate_proj"),
    ],
)
def test_experts_of_a_layer_are_one_stack_and_read_back_one_by_one(
    name: str, stack: str, expert: str, tmp_path: Path
) -> None:
    source = write_checkpoint(name, tmp_path / "Moe")
    done = quantkit("convert", source, "-t", "mlx-4bit", "--group-size", "32", "-o", tmp_path)
    assert done.code == 0, done.stderr
    folder, at = tmp_path / "Moe-MLX-4bit", "model.layers.1."
    stored = tensors_of(folder)
    assert not [tensor for tensor in stored if ".experts.0." in tensor]
    words, n_experts = stored[f"{at}{stack}.weight"], len(stored[f"{at}{stack}.scales"])
    assert words.ndim == 3 and n_experts > 2
    with open_model(str(folder)) as opened, open_model(str(source)) as original:
        native = Native(original)
        for index in range(n_experts):
            parts = {f"x.{part}": stored[f"{at}{stack}.{part}"][index] for part in ("weight", "scales", "biases")}
            values, own = dequantized(parts, "x", 4, 32), at + expert.format(index) + ".weight"
            assert np.array_equal(opened.read_rows(own, 0, len(values)), values)
            before = native.whole(own).astype(np.float32)
            assert np.sqrt(np.mean((values - before) ** 2)) < 0.15 * before.std()
    again = quantkit("convert", folder, "-t", "fp8", "-t", "q8_0", "-o", tmp_path)
    assert again.code == 0, again.stderr
    assert "mlx 4 bit, group 32" in " ".join(again.stderr.split())


def test_error_feedback_lowers_the_error_of_the_outputs(tmp_path: Path) -> None:
    source = write_checkpoint("qwen3moe", tmp_path / "Moe")
    few = ("--group-size", "32", "--samples", "8", "--seq-len", "64", "--raw")
    errors = {}
    for name, given in (("3bit", few[:2]), ("3bit-GPTQ", few)):
        done = quantkit("convert", source, "-t", f"mlx-{name.lower()}", *given, "-o", tmp_path)
        assert done.code == 0, done.stderr
        folder = tmp_path / f"Moe-MLX-{name}"
        (record,) = json.loads((folder / "quantkit.json").read_text())["outputs"].values()
        errors[name] = np.array(list(record["relative_error"].values()))
        with open_folder(folder, threads=1) as engine:
            assert engine.kind == "mlx-3bit"
    # of the outputs, squared, against that of the weights, whose square is the outputs' for inputs like white noise
    assert errors["3bit-GPTQ"].mean() < 0.7 * np.square(errors["3bit"]).mean()


def test_mlx_lm_finds_qwen_3_5_by_its_own_model_type(tmp_path: Path) -> None:
    source = write_checkpoint("qwen35", tmp_path / "Qwen")
    assert quantkit("convert", source, "-t", "mlx-8bit", "--group-size", "32", "-o", tmp_path).code == 0
    config = json.loads((tmp_path / "Qwen-MLX-8bit" / "config.json").read_text())
    assert config["model_type"] == "qwen3_5"


def test_what_mlx_lm_would_not_read_is_refused(tmp_path: Path) -> None:
    moe, dense = write_checkpoint("ernie4.5-moe", tmp_path / "Moe"), tiny_llama(tmp_path / "Tiny", hidden=128)
    mixtral, falcon = (write_checkpoint(name, tmp_path / name) for name in ("mixtral", "falcon-h1"))
    for source, arguments, code, message in (
        (moe, (), 1, "quantkit does not know mlx-lm's names of them for this model"),
        (falcon, (), 1, "mlx-lm multiplies the weights of Falcon-H1 as it loads them"),
        (
            mixtral,
            ("--skip", "experts.1.w2", "--group-size", "32"),
            2,
            "--skip matches model.layers.0.block_sparse_moe",
        ),
        (dense, ("--group-size", "100"), 2, "MLX-4bit has groups of 32, 64, 128, not 100; choose one by --group-size"),
    ):
        done = quantkit("convert", source, "-t", "mlx-4bit", *arguments, "-o", tmp_path)
        assert done.code == code
        assert message in " ".join(done.stderr.split()) and "add --skip" not in done.stderr
