"""Families from a folder of the user's: the file that docs/dev/add-a-family.md shows is enough for every command."""

import json
import os
from pathlib import Path

import pytest

from quantkit.errors import UsageError
from quantkit.families import all_families, find_family
from quantkit.families.base import registry
from tests.families.expected import write_checkpoint
from tests.helpers.command import quantkit, quantkit_forked

# AcmeCoder is Llama's graph under a name that quantkit has no family for.
ARCHITECTURE = "AcmeCoderForCausalLM"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "dev" / "add-a-family.md"
FAMILY_FILE = PAGE.read_text("utf-8").split("```python\n")[1].split("```")[0]
TEXT = "The quick brown fox jumps over the lazy dog. " * 200


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of family files that quantkit and its child processes read."""
    path = tmp_path / "my-families"
    path.mkdir()
    monkeypatch.setenv("QUANTKIT_FAMILIES", str(path))
    registry._users.cache_clear()
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny model of an architecture that quantkit has no family for."""
    path = write_checkpoint("llama", tmp_path / "coder")
    config = json.loads((path / "config.json").read_text())
    changed = {**config, "architectures": [ARCHITECTURE], "model_type": "acmecoder"}
    (path / "config.json").write_text(json.dumps(changed))
    return path


def test_one_file_is_enough_for_every_command(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    refused = quantkit_forked("plan", checkpoint)
    assert refused.code == 1 and f"architecture {ARCHITECTURE} of config.json is not supported" in refused.stderr
    (folder / "coder.py").write_text(FAMILY_FILE)
    text = tmp_path / "text.txt"
    text.write_text(TEXT)

    inspected = json.loads(quantkit_forked("inspect", checkpoint, "--format", "json").stdout)
    assert (inspected["family"], inspected["convertible"]) == ("Acme-Coder-40B", True)
    planned = json.loads(quantkit("plan", checkpoint, "--ram", "16G", "-t", "q8_0", "--format", "json").stdout)
    assert planned["best"] == "q8_0"

    converted = quantkit("gguf", checkpoint, "-t", "q8_0", "-o", tmp_path / "gguf", "--format", "json")
    assert converted.code == 0, converted.stderr
    (output,) = json.loads(converted.stdout)["outputs"]
    assert {check["name"]: check["status"] for check in output["checks"]}["logits"] == "passed"

    limits = ("--samples", "4", "--seq-len", "64", "--calibration", text)
    matrix = quantkit("imatrix", checkpoint, *limits, "-o", tmp_path / "imatrix.gguf")
    assert matrix.code == 0, matrix.stderr
    packed = quantkit("awq", checkpoint, *limits, "--group-size", "32", "-o", tmp_path / "awq")
    assert packed.code == 0, packed.stderr

    for candidate in (next((tmp_path / "gguf").rglob("*.gguf")), next((tmp_path / "awq").glob("*-AWQ"))):
        report = tmp_path / f"report-{candidate.stem}"
        words = ("--text", text, "--ctx", "64", "--chunks", "2", "--gpu-layers", "0", "-o", report)
        measured = quantkit("measure", checkpoint, candidate, *words)
        assert measured.code == 0, measured.stderr


def test_a_family_file_that_fails_to_load_is_one_sentence(folder: Path, checkpoint: Path) -> None:
    path = folder / "coder.py"
    for content, words in (
        ("FAMILY = Famly()", f"family file {path} cannot be loaded (NameError: name 'Famly' is not defined)"),
        ("family = 1", f"{path} has no FAMILY"),
        ("from quantkit.families.llama import FAMILY", f"{path} defines architecture LlamaForCausalLM, which"),
    ):
        path.write_text(content)
        answer = quantkit("inspect", checkpoint)
        assert answer.code == 2
        assert words in answer.stderr and answer.stderr.count("\n") == 1, answer.stderr


def test_a_folder_that_does_not_exist_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTKIT_FAMILIES", f"{folder}{os.pathsep}{folder / 'missing'}")
    with pytest.raises(UsageError, match="missing, which is not a folder"):
        all_families()


def test_an_empty_variable_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUANTKIT_FAMILIES", raising=False)
    known = all_families()
    monkeypatch.setenv("QUANTKIT_FAMILIES", "")
    assert all_families() == known
    assert find_family({"architectures": ["LlamaForCausalLM"]}).name == "Llama"


def test_a_dimension_that_no_one_defines_is_named(folder: Path, checkpoint: Path) -> None:
    rules = "    rules=(*LLAMA.rules[:1], replace(LLAMA.rules[1], shape=('no_such_width',))),\n"
    (folder / "coder.py").write_text(FAMILY_FILE.replace('    name="AcmeCoder",\n', '    name="AcmeCoder",\n' + rules))
    answer = quantkit("gguf", checkpoint, "-t", "f16", "--dry-run")
    assert answer.code == 2
    assert "family AcmeCoder has a rule with the dimension 'no_such_width'" in answer.stderr
