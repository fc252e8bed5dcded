"""`quantkit awq`, `quantkit gptq` and `quantkit convert` as a user meets them: kills, bad input, what they say."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantkit.cli import main
from tests.command import Answer, command, quantkit
from tests.tiny import tiny_llama

SMALL = ("--samples", "8", "--seq-len", "32", "--group-size", "32")
FILES = ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("sound") / "model", variant="llama3", hidden=64, intermediate=96)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture") / "mixture"
    return tiny_llama(folder, variant="mixtral", hidden=64, intermediate=96)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """The command line in this process."""

    def run(*words: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["quantkit", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as left:
            code = int(left.code or 0)
        out, err = capfd.readouterr()
        return Answer(code, out, err)

    return run


Here = Callable[..., Answer]


def hashes(folder: Path) -> dict[str, str]:
    """Of every file below but the record, which has times in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "quantkit.json"
    }


# --- what is written ---


def test_one_document_tells_all_and_the_folders_record_it(here: Here, mixture: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The river carries what the hills let go. " * 400)
    answer = here(
        "convert", mixture, "-t", "awq", "-t", "gptq", *SMALL, "--calibration", text, "-o", tmp_path, "--format", "json"
    )
    assert answer.code == 0, answer.stderr
    document = json.loads(answer.stdout)
    assert [each["type"] for each in document["outputs"]] == ["GPTQ", "AWQ"]
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
    inspected = here("inspect", tmp_path / "mixture-AWQ")
    assert inspected.code == 0, inspected.stderr
    assert "awq" in inspected.stdout.lower()


def test_a_dry_run_writes_nothing_and_states_the_sizes_that_follow(here: Here, sound: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("convert", sound, "-t", "awq", "-t", "gptq", "-t", "q8_0", *SMALL, "-o", out, "--format", "json")
    dry = here(*words, "--dry-run")
    assert dry.code == 0, dry.stderr
    assert not out.exists()
    stated = {
        Path(each["folder"]) / file["name"]: file["bytes"]
        for each in json.loads(dry.stdout)["outputs"]
        if "folder" in each
        for file in each["files"]
    }
    assert here(*words).code == 0
    assert stated == {path: path.stat().st_size for path in out.glob("model-*/*.safetensors")}
    assert sorted(path.name for path in out.iterdir()) == ["model-AWQ", "model-GGUF", "model-GPTQ"]


def test_what_is_skipped_stays_a_matrix_and_a_pattern_that_matches_nothing_is_refused(
    here: Here, sound: Path, tmp_path: Path
) -> None:
    answer = here("gptq", sound, *SMALL, "--skip", "down_proj", "--skip", "*.0.self_attn.*", "-o", tmp_path)
    assert answer.code == 0, answer.stderr
    config = json.loads((tmp_path / "model-GPTQ" / "config.json").read_text())["quantization_config"]
    header = (tmp_path / "model-GPTQ" / "model.safetensors").read_bytes()[:100_000]
    for layer in (0, 1):
        assert f"model.layers.{layer}.mlp.down_proj.weight".encode() in header
    assert b"model.layers.0.self_attn.q_proj.weight" in header
    assert b"model.layers.1.self_attn.q_proj.qweight" in header
    assert "down_proj" in json.dumps(config)
    refused = here("gptq", sound, *SMALL, "--skip", "mlp.fc1", "-o", tmp_path / "no")
    assert refused.code == 2
    assert "--skip mlp.fc1 matches no linear" in refused.sentence
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("kind", ["sound", "mixture"])
def test_propagating_what_is_quantized_gives_other_weights(
    kind: str, here: Here, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = request.getfixturevalue(kind)
    found = {}
    for propagate in ("float", "quantized"):
        out = tmp_path / propagate
        answer = here("gptq", source, *SMALL, "--bits", "3", "--propagate", propagate, "-o", out, "--name", "m")
        assert answer.code == 0, answer.stderr
        found[propagate] = hashes(out / "m-GPTQ")
        record = json.loads((out / "m-GPTQ" / "quantkit.json").read_text())["outputs"]["m-GPTQ"]
        assert record["options"]["propagate"] == propagate
    different = {name for name in found["float"] if found["float"][name] != found["quantized"][name]}
    assert different == {"model.safetensors"}


# --- kills ---


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many layers, so that kills land in them."""
    folder = tmp_path_factory.mktemp("deep") / "model"
    return tiny_llama(folder, variant="llama3", hidden=64, intermediate=96, layers=12)


KINDS = ("-t", "awq", "-t", "gptq", "-t", "q8_0", "-t", "q2_k")


@pytest.fixture(scope="module")
def undisturbed(deep: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed")
    answer = quantkit("convert", deep, *KINDS, *SMALL, "-o", out, "--threads", "2")
    assert answer.code == 0, answer.stderr
    found = hashes(out)
    assert {Path(name).parts[0] for name in found} == {"model-AWQ", "model-GPTQ", "model-GGUF"}
    return found


def killed_once(words: list[str], out: Path, ready: Callable[[], bool], pause: float) -> bool:
    """Start, wait until `ready`, then so long, and kill; whether it was still running."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not ready():
        time.sleep(0.002)
    time.sleep(pause)
    alive = process.poll() is None
    if alive:
        process.send_signal(signal.SIGKILL)
    process.wait()
    return alive


def layers_done(out: Path) -> int:
    journal = out / "model-calibration.partial" / "journal"
    try:
        return journal.read_text().count('"tensor":"layer')
    except FileNotFoundError:
        return 0


def test_a_run_killed_at_ten_moments_ends_in_the_same_bytes(
    deep: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    words = command("convert", deep, *KINDS, *SMALL, "-o", tmp_path, "--threads", "2")
    moments = random.Random(4)
    kills, progress = 0, [0]
    while kills < 10:
        before = layers_done(tmp_path)

        def further(before: int = before) -> bool:
            # a layer more, or the last part: a kill before anything was done would show nothing
            return layers_done(tmp_path) > before or (before == 12 and list(tmp_path.glob("model-GGUF/*")) != [])

        kills += killed_once(words, tmp_path, further, moments.uniform(0, 0.15))
        progress.append(layers_done(tmp_path))
        if progress[-1] == 0:
            break
        assert not (tmp_path / "model-AWQ").exists()
        assert not (tmp_path / "model-GPTQ").exists()
        if progress[-1] == 12 and kills < 10:
            # all layers are done: the rest of the kills hit the checks and the GGUF part
            continue
    assert len(set(progress)) > 4
    answer = quantkit(*words[3:])
    assert answer.code == 0, answer.stderr
    assert hashes(tmp_path) == undisturbed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-AWQ", "model-GGUF", "model-GPTQ"]
