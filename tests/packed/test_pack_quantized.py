"""compressed-tensors folders of integers, against the published format read with Python's integers."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantkit import ConvertOptions, convert
from quantkit.families import reference_logits
from quantkit.measurement.folder_engine import open_folder
from quantkit.outputs.calibration import CalibrationRequest
from quantkit.packed.pack_quantized import pack_integers
from quantkit.packed.reader import open_quantized
from quantkit.quant.grid import Grid, Quantized
from tests.docs.test_schemas import errors
from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama
from tests.packed.folders import write_folder

FEW = ("--samples", "4", "--seq-len", "32", "--raw", "--group-size", "32")
Tensors = dict[str, np.ndarray]


def tensors_of(folder: Path) -> Tensors:
    """Every tensor of a folder's files as stored, floats in float32."""
    tensors: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8 : 8 + length]).items():
            if name != "__metadata__":
                start, stop = entry["data_offsets"]
                raw = data[8 + length + start : 8 + length + stop]
                tensors[name] = KINDS[entry["dtype"]](raw).reshape(entry["shape"])
    return tensors


def bfloat16(raw: bytes) -> np.ndarray:
    return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)


KINDS: dict[str, Callable[[bytes], np.ndarray]] = {
    "BF16": bfloat16,
    "F16": lambda raw: np.frombuffer(raw, "<f2").astype(np.float32),
    "F32": lambda raw: np.frombuffer(raw, "<f4"),
    "I32": lambda raw: np.frombuffer(raw, "<i4"),
    "I64": lambda raw: np.frombuffer(raw, "<i8"),
}


def signed(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Element k of a row of int32 words is at bit k * bits of the row, stored plus 2^(bits - 1)."""
    rows = []
    for row in words:
        stream = int.from_bytes(row.astype("<i4").tobytes(), "little")
        rows.append([(stream >> k * bits & (1 << bits) - 1) - (1 << bits - 1) for k in range(count)])
    return np.array(rows)


def weight_of(stored: Tensors, linear: str, bits: int) -> np.ndarray:
    """(q - zero) * scale, group by group of inputs."""
    rows, columns = stored[f"{linear}.weight_shape"]
    q = signed(stored[f"{linear}.weight_packed"], bits, columns)
    scale, zero = stored[f"{linear}.weight_scale"], np.zeros((rows, 1), np.int64)
    if f"{linear}.weight_zero_point" in stored:
        zero = signed(stored[f"{linear}.weight_zero_point"].T, bits, rows).T
    group = columns // scale.shape[1]
    spread = [np.repeat(values, columns // values.shape[1], axis=1) for values in (zero, scale)]
    assert group * scale.shape[1] == columns
    return ((q - spread[0]) * spread[1]).astype(np.float32)


@pytest.mark.parametrize(("bits", "group", "symmetric"), [(4, 32, True), (4, 32, False), (8, -1, True), (8, 16, False)])
def test_packed_integers_are_read_back_by_the_published_format(bits: int, group: int, symmetric: bool) -> None:
    rng, grid = np.random.default_rng(bits), Grid(bits, group, symmetric)
    n_out, n_in = 24, 96
    groups = 1 if group == -1 else n_in // group
    zeros = rng.integers(0, 1 << bits, (n_out, groups)).astype(np.uint8)
    if symmetric:
        zeros[:] = 1 << bits - 1
    q = rng.integers(0, 1 << bits, (n_out, n_in)).astype(np.uint8)
    quantized = Quantized(grid, q, rng.random((n_out, groups), np.float32) + 1, zeros, grid.groups(n_in))
    packed = {f"x.{suffix}": values for suffix, values in pack_integers(quantized).items()}
    assert np.array_equal(weight_of(packed, "x", bits), quantized.dequantized())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("packed") / "Tiny", variant="llama3", dtype="bf16", hidden=128)


CASES: dict[str, tuple[str, ...]] = {
    "w4a16": (),
    "w4a16 --asym": ("--asym",),
    "w4a16 --algorithm awq --asym": ("--algorithm", "awq", "--asym"),
    "w8a16 --dtype float16": ("--dtype", "float16"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_folder_is_what_its_config_says_and_gives_the_logits_of_the_published_format(
    case: str, source: Path, tmp_path: Path
) -> None:
    method = case.split()[0]
    done = quantkit("convert", source, "-t", method, *CASES[case], *FEW, "-o", tmp_path)
    assert done.code == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    assert folder.name == f"Tiny-{method.upper()}"
    config, stored = json.loads((folder / "config.json").read_text()), tensors_of(folder)
    quantization = config["quantization_config"]
    weights = quantization["config_groups"]["group_0"]["weights"]
    expected = {"num_bits": int(method[1]), "type": "int", "strategy": "group", "group_size": 32, "dynamic": False}
    assert weights.items() >= {**expected, "symmetric": "--asym" not in case, "actorder": None}.items()
    assert (quantization["quant_method"], quantization["format"]) == ("compressed-tensors", "pack-quantized")
    assert quantization["ignore"] == ["lm_head"]
    linears = [name.removesuffix(".weight_packed") for name in stored if name.endswith(".weight_packed")]
    assert len(linears) == 14
    plain = {name: values for name, values in stored.items() if ".weight_" not in name}
    plain |= {f"{linear}.weight": weight_of(stored, linear, weights["num_bits"]) for linear in linears}
    tokens = list(range(3, 35))
    expected = reference_logits(plain.__getitem__, config, tokens, names=plain.keys())
    with open_folder(folder, threads=1) as engine:
        assert engine.kind == method
        ours = reference_logits(engine.source.whole, config, tokens, names=engine.source.tensors.keys())
    assert np.allclose(ours, expected, atol=1e-4 * expected.std())


def test_gptqs_rounding_is_the_same_in_both_containers(source: Path, tmp_path: Path) -> None:
    few = CalibrationRequest(samples=4, seq_len=32, chat=False)
    options = ConvertOptions(group_size=32, calibration=few, dtype="float16")
    assert not convert(source, ["gptq", "w4a16"], tmp_path, options).failed
    with open_quantized(tmp_path / "Tiny-GPTQ") as one, open_quantized(tmp_path / "Tiny-W4A16") as other:
        for name in one.linears:
            assert np.array_equal(one.dequantized(name), other.dequantized(name))


@pytest.mark.parametrize(("method", "bits", "symmetric"), [("awq", 4, False), ("gptq", 4, True), ("gptq", 8, False)])
def test_a_folder_is_repacked_without_loss(
    method: str, bits: int, symmetric: bool, source: Path, tmp_path: Path
) -> None:
    write_folder(source, tmp_path / f"Tiny-{method.upper()}", method, Grid(bits, 32, symmetric))
    done = quantkit(
        "convert", tmp_path / f"Tiny-{method.upper()}", "-t", f"w{bits}a16", "-o", tmp_path / "out", "--format", "json"
    )
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["outputs"][0]["verified"]
    made = tmp_path / "out" / f"Tiny-W{bits}A16"
    stored = tensors_of(made)
    with open_quantized(tmp_path / f"Tiny-{method.upper()}") as opened:
        for name in opened.names:
            linear = name.removesuffix(".weight")
            expected = np.asarray(opened.whole(name), np.float32)
            values = weight_of(stored, linear, bits) if linear in opened.linears else stored[name]
            assert np.array_equal(values, expected), name
    config = json.loads((made / "config.json").read_text())
    assert config["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] is symmetric
    assert quantkit("inspect", made).code == 0
    assert quantkit("card", made).code == 0
    record = json.loads((made / "quantkit.json").read_text())
    assert errors("quantkit", record) == []
    for name, about in record["outputs"][made.name]["files"].items():
        assert about["sha256"] == hashlib.sha256((made / name).read_bytes()).hexdigest()


def test_what_cannot_be_repacked_is_rounded_again_with_a_warning(source: Path, tmp_path: Path) -> None:
    write_folder(source, tmp_path / "Tiny-AWQ")
    few = ("--samples", "4", "--seq-len", "32", "--group-size", "32", "--raw")
    done = quantkit("convert", tmp_path / "Tiny-AWQ", "-t", "w8a16", *few, "-o", tmp_path / "out")
    assert done.code == 0, done.stderr
    assert "has weights of 4 bits, and w8a16 stores 8" in " ".join(done.stderr.split())
    with open_quantized(tmp_path / "out" / "Tiny-AWQ-W8A16") as made, open_quantized(tmp_path / "Tiny-AWQ") as source_:
        assert made.linears.keys() == source_.linears.keys()
        for name in made.linears:
            expected = source_.dequantized(name)
            assert np.sqrt(np.mean((made.dequantized(name) - expected) ** 2)) < 0.01 * expected.std(), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-t", "w4a16", "--no-static-groups"), "-t w4a16 has no groups by activation order"),
        (("-t", "awq", "-t", "w4a16", "--algorithm", "awq"), "awq and w4a16 both scale the channels"),
        (
            ("-t", "awq", "-t", "w4a16", "-t", "w8a8", "--algorithm", "awq"),
            "awq, w4a16 and w8a8 all scale the channels",
        ),
        (("-t", "awq", "--algorithm", "awq"), "--algorithm has no effect"),
        (("-t", "w4a16", "--bits", "8"), "--bits has no effect"),
        (("-t", "w4a16", "--group-size", "48"), "not a multiple of group size 48"),
    ],
)
def test_contradictions_are_refused_in_one_sentence(
    arguments: tuple[str, ...], message: str, source: Path, tmp_path: Path
) -> None:
    done = quantkit("convert", source, "--samples", "4", "--seq-len", "32", *arguments, "-o", tmp_path / "out")
    assert done.code in (1, 2)
    assert message in " ".join(done.stderr.split())
