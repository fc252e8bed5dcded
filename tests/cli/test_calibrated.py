"""`quantkit awq`, `quantkit gptq` and `quantkit convert`: what they write and say, and when they calibrate."""

import hashlib
import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from gguf import GGUFReader

from tests.cli.calibrated import SMALL, hashes
from tests.helpers.command import quantkit_here
from tests.helpers.tiny import tiny_llama


def test_one_document_tells_all_and_the_folders_record_it(narrow_mixture: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The river carries what the hills let go. " * 400)
    answer = quantkit_here(
        "convert",
        narrow_mixture,
        "-t",
        "awq",
        "-t",
        "gptq",
        *SMALL,
        "--calibration",
        text,
        "-o",
        tmp_path,
        "--format",
        "json",
    )
    assert answer.code == 0, answer.stderr
    document = json.loads(answer.stdout)
    assert [entry["type"] for entry in document["outputs"]] == ["GPTQ", "AWQ"]
    assert document["calibration"] == {
        "text": "text.txt",
        "sha256": hashlib.sha256((text.read_text() + "\n\n").encode()).hexdigest(),
        "samples": 8,
        "tokens_per_sample": 32,
    }
    for output in document["outputs"]:
        folder = Path(output["folder"])
        assert output["bytes"] >= sum(file["bytes"] for file in output["files"]) - 1
        assert output["verified"]
        record = json.loads((folder / "quantkit.json").read_text())["outputs"][folder.name]
        assert record["calibration"]["sha256"] == document["calibration"]["sha256"]
        weights = folder / "model.safetensors"
        assert record["files"]["model.safetensors"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert record["relative_error"] == output["relative_error"]
        assert len(record["relative_error"]) == 2 * (4 + 4 * 3)
        # each of 256 tokens goes to two of four experts
        assert record["tokens_per_expert"].keys() == {"layer 0", "layer 1"}
        for tokens in record["tokens_per_expert"].values():
            assert sum(tokens.values()) == 8 * 32 * 2
            assert set(tokens) == {f"expert {number}" for number in range(4)}
        assert str(tmp_path) not in json.dumps(record)
    inspected = quantkit_here("inspect", tmp_path / "mixture-AWQ")
    assert inspected.code == 0, inspected.stderr
    assert "awq" in inspected.stdout.lower()


def test_several_texts_are_named_in_the_document_the_record_and_the_page(narrow: Path, tmp_path: Path) -> None:
    text = tmp_path / "own.txt"
    text.write_text("The river carries what the hills let go. " * 400)
    words = ("awq", narrow, *SMALL, "--calibration", "default", "--calibration", text, "-o", tmp_path)
    answer = quantkit_here(*words, "--format", "json")
    assert answer.code == 0, answer.stderr
    calibration = json.loads(answer.stdout)["calibration"]
    assert calibration["text"] == ["quantkit's default text", "own.txt"]
    assert calibration["sha256"][1] == hashlib.sha256((text.read_text() + "\n\n").encode()).hexdigest()
    assert (calibration["samples"], calibration["samples_per_text"]) == (8, [4, 4])
    (folder,) = tmp_path.glob("*-AWQ")
    record = json.loads((folder / "quantkit.json").read_text())["outputs"][folder.name]
    assert record["calibration"] == calibration | {"chat_template": False}
    page = " ".join(quantkit_here("inspect", folder).stdout.split())
    assert "calibrated on quantkit's default text and own.txt (8 samples of 32 tokens)" in page


def test_a_run_with_other_texts_does_not_resume_that_of_the_first(narrow: Path, tmp_path: Path) -> None:
    text = tmp_path / "own.txt"
    text.write_text("The river carries what the hills let go. " * 400)
    texts = ("--calibration", text, "--calibration", "default")
    interrupted = patch("quantkit.conversion.run.verify_outputs", side_effect=KeyboardInterrupt)
    with interrupted, pytest.raises(KeyboardInterrupt):
        quantkit_here("gptq", narrow, *SMALL, *texts, "-o", tmp_path)
    other = quantkit_here("gptq", narrow, *SMALL, *texts[2:], *texts[:2], "-o", tmp_path)
    changed = f"--calibration {text.name}, default (now default, {text.name})"
    assert other.code == 1 and f"unfinished run with {changed}; finish it" in other.sentence
    same = quantkit_here("gptq", narrow, *SMALL, *texts, "-o", tmp_path, "--format", "json")
    assert same.code == 0 and json.loads(same.stdout)["resumed_layers"] == 2


def test_a_dry_run_writes_nothing_and_states_the_sizes_that_follow(narrow: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("convert", narrow, "-t", "awq", "-t", "gptq", "-t", "q8_0", *SMALL, "-o", out, "--format", "json")
    dry = quantkit_here(*words, "--dry-run")
    assert dry.code == 0, dry.stderr
    assert not out.exists()
    stated = {
        Path(output["folder"]) / file["name"]: file["bytes"]
        for output in json.loads(dry.stdout)["outputs"]
        for file in output["files"]
    }
    assert quantkit_here(*words).code == 0
    assert stated == {path: path.stat().st_size for path in (*out.glob("*/*.safetensors"), *out.glob("*/*.gguf"))}
    assert sorted(path.name for path in out.iterdir()) == ["model-AWQ", "model-GGUF", "model-GPTQ"]


def test_what_is_skipped_stays_a_matrix_and_a_pattern_that_matches_nothing_is_refused(
    narrow: Path, tmp_path: Path
) -> None:
    answer = quantkit_here("gptq", narrow, *SMALL, "--skip", "down_proj", "--skip", "*.0.self_attn.*", "-o", tmp_path)
    assert answer.code == 0, answer.stderr
    config = json.loads((tmp_path / "model-GPTQ" / "config.json").read_text())["quantization_config"]
    header = (tmp_path / "model-GPTQ" / "model.safetensors").read_bytes()[:100_000]
    for layer in (0, 1):
        assert f"model.layers.{layer}.mlp.down_proj.weight".encode() in header
    assert b"model.layers.0.self_attn.q_proj.weight" in header
    assert b"model.layers.1.self_attn.q_proj.qweight" in header
    assert "down_proj" in json.dumps(config)
    refused = quantkit_here("gptq", narrow, *SMALL, "--skip", "mlp.fc1", "-o", tmp_path / "no")
    assert refused.code == 2
    assert "--skip mlp.fc1 matches no linear" in refused.sentence
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("kind", ["narrow", "narrow_mixture"])
def test_propagating_what_is_quantized_gives_other_weights(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = request.getfixturevalue(kind)
    weights = {}
    for propagate in ("float", "quantized"):
        out = tmp_path / propagate
        answer = quantkit_here(
            "gptq", source, *SMALL, "--bits", "3", "--propagate", propagate, "-o", out, "--name", "m"
        )
        assert answer.code == 0, answer.stderr
        weights[propagate] = hashes(out / "m-GPTQ")
        record = json.loads((out / "m-GPTQ" / "quantkit.json").read_text())["outputs"]["m-GPTQ"]
        assert record["options"]["propagate"] == propagate
    different = {name for name in weights["float"] if weights["float"][name] != weights["quantized"][name]}
    assert different == {"model.safetensors"}


@pytest.mark.parametrize(("method", "bits", "is_warned"), [("awq", 3, True), ("awq", 4, False), ("gptq", 3, False)])
def test_widths_that_few_loaders_read_have_a_warning(
    method: str, bits: int, is_warned: bool, narrow: Path, tmp_path: Path
) -> None:
    answer = quantkit_here(method, narrow, *SMALL, "--bits", bits, "--dry-run", "-o", tmp_path)
    assert answer.code == 0
    assert ("load AWQ of 4 bits only; more loaders read GPTQ of 3 bits" in answer.stderr) == is_warned


@pytest.mark.parametrize(
    ("kind", "size", "is_warned"), [("awq", 2, True), ("gptq", 1, True), ("w4a16", 8, True), ("gptq", 16, False)]
)
def test_a_group_size_that_most_loaders_do_not_read_has_a_warning(
    kind: str, size: int, is_warned: bool, narrow: Path, tmp_path: Path
) -> None:
    words = ("--group-size", str(size), "--dry-run", "-o", tmp_path)
    answer = quantkit_here("convert", narrow, "-t", kind, *SMALL[:5], *words)
    assert answer.code == 0, answer.stderr
    sentence = f"most loaders of {kind.upper()} do not read groups of {size}; use --group-size 128, 64, 32 or -1"
    assert (sentence in " ".join(answer.stderr.split())) == is_warned, answer.stderr


def test_the_gguf_part_is_what_the_importance_matrix_written_and_read_gives(tmp_path: Path) -> None:
    """`quantkit imatrix` and `quantkit gguf --imatrix` are held against llama.cpp's own tools elsewhere."""
    source = tiny_llama(tmp_path / "model", variant="mixtral", intermediate=256)
    assert (
        quantkit_here("convert", source, "-t", "awq", "-t", "q2_k", *SMALL, "-o", tmp_path / "a", "--no-logits").code
        == 0
    )
    assert quantkit_here("imatrix", source, *SMALL[:5], "-o", tmp_path / "imatrix.gguf").code == 0
    answer = quantkit_here(
        "gguf", source, "-t", "q2_k", "--imatrix", tmp_path / "imatrix.gguf", "-o", tmp_path / "b", "--no-logits"
    )
    assert answer.code == 0, answer.stderr
    actual, expected = (
        {
            tensor.name: tensor.data
            for tensor in GGUFReader(tmp_path / folder / "model-GGUF" / "model-Q2_K.gguf").tensors
        }
        for folder in ("a", "b")
    )
    assert actual.keys() == expected.keys()
    assert all(np.array_equal(actual[name], expected[name]) for name in expected)


def test_convert_without_an_importance_matrix_is_gguf(narrow: Path, tmp_path: Path) -> None:
    options = ("-t", "q2_k", "-t", "q8_0", "--pure", "--tensor-type", "ffn_down=q6_k", "--split-max-size", "90k")
    for preset, more in (("convert", ("--no-imatrix",)), ("gguf", ())):
        answer = quantkit_here(preset, narrow, *options, *more, "-o", tmp_path / preset, "--no-logits")
        assert answer.code == 0, answer.stderr
    assert len(hashes(tmp_path / "gguf")) > 2
    assert hashes(tmp_path / "convert") == hashes(tmp_path / "gguf")


@pytest.mark.parametrize(
    ("words", "calibrates"),
    [
        (("-t", "q8_0", "-t", "bf16", "-t", "mxfp4"), False),
        (("-t", "q8_0", "-t", "fp8"), False),
        (("-t", "q8_0", "-t", "q4_k_m"), True),
        (("-t", "q8_0", "--tensor-type", "ffn_down=q4_k"), True),
        (("-t", "q8_0", "--calibrate"), True),
        (("-t", "q8_0", "-t", "imatrix"), True),
    ],
)
def test_convert_calibrates_where_an_importance_matrix_changes_a_tensor(
    words: tuple[str, ...], calibrates: bool, narrow: Path, tmp_path: Path
) -> None:
    answer = quantkit_here("convert", narrow, *words, "--dry-run", "-o", tmp_path)
    assert answer.code == 0, answer.stderr
    assert ("calibrates on" in answer.stderr) == calibrates


@pytest.mark.parametrize("kind", ["f32", "q8_0", "mxfp4"])
def test_a_type_that_uses_no_importances_has_the_same_tensors_with_them(
    kind: str, narrow: Path, tmp_path: Path
) -> None:
    options = ("-t", kind, "--samples", "2", "--seq-len", "32", "--no-logits", "-o")
    assert quantkit_here("convert", narrow, *options, tmp_path / "with", "--calibrate").code == 0
    assert quantkit_here("gguf", narrow, "-t", kind, "--no-logits", "-o", tmp_path / "without").code == 0
    files = [GGUFReader(next((tmp_path / name).rglob("*.gguf"))) for name in ("with", "without")]
    data = [{tensor.name: bytes(tensor.data) for tensor in file.tensors} for file in files]
    assert data[0] == data[1]
