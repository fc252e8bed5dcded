"""What the commands say: help that reads at 80 columns, one JSON document, nothing when quiet."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quantkit import __version__
from quantkit.gguf.file_types import FILE_TYPES
from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("source") / "model", variant="smollm2")


@pytest.mark.parametrize("words", [(), ("--help",), ("gguf", "--help"), ("imatrix", "--help")])
def test_help_fits_80_columns(words: tuple[str, ...]) -> None:
    answer = quantkit(*words)
    text = answer.stdout + answer.stderr
    assert "gguf" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_help_of_gguf_names_every_type() -> None:
    text = " ".join(quantkit("gguf", "--help").stdout.split())
    assert not [name for name in FILE_TYPES if not re.search(rf"\b{name}\b", text)]


def test_the_version_is_the_packages() -> None:
    assert quantkit("--version").stdout.strip() == f"quantkit {__version__}"


def test_json_is_one_document_on_stdout(checkpoint: Path, tmp_path: Path) -> None:
    answer = quantkit("gguf", checkpoint, "-t", "q4_0", "-t", "q8_0", "-o", tmp_path, "--format", "json")
    assert answer.code == 0, answer.stderr
    document = json.loads(answer.stdout)
    assert [item["type"] for item in document["outputs"]] == ["q4_0", "q8_0"]
    for item in document["outputs"]:
        (file,) = item["files"]
        assert (Path(document["folder"]) / file["name"]).stat().st_size == file["bytes"] == item["bytes"]
        assert {check["name"] for check in item["checks"]} == {"structure", "finite", "error", "tokens", "logits"}
        assert {check["status"] for check in item["checks"]} == {"passed"}
        assert item["logit_correlation"] > 0.8


def test_quiet_says_nothing(checkpoint: Path, tmp_path: Path) -> None:
    answer = quantkit("gguf", checkpoint, "-t", "f16", "-o", tmp_path, "--format", "quiet", "--no-logits")
    assert (answer.code, answer.stdout, answer.stderr) == (0, "", "")


def test_the_closing_table_names_each_file_and_its_size(checkpoint: Path, tmp_path: Path) -> None:
    answer = quantkit("gguf", checkpoint, "-t", "q4_k_m", "-t", "q8_0", "-o", tmp_path, "--no-logits")
    assert answer.code == 0, answer.stderr
    for label in ("Q4_K_M", "Q8_0"):
        assert re.search(rf"^{label.lower()} +[\d.]+ [kM]B ", answer.stdout, re.MULTILINE)
        assert str(tmp_path / "model-GGUF" / f"model-{label}.gguf") in answer.stdout
    assert "peak memory" in answer.stdout
    assert re.search(
        r"needs [\d.]+ [kM]B of disk \([\d.]+ [MGT]B free\) and about [\d.]+ [MG]B of memory", answer.stderr
    )


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("quantkit g", {"gguf", "gptq"}),
        ("quantkit gguf x --thr", {"--threads"}),
        ("quantkit gguf x -t q4_k", {"q4_k_m", "q4_k_s"}),
    ],
)
def test_the_shell_completes_commands_options_and_types(typed: str, offered: set[str]) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("quantkit")],
        env={
            **os.environ,
            "_QUANTKIT_COMPLETE": "complete_bash",
            "COMP_WORDS": typed,
            "COMP_CWORD": str(len(typed.split()) - 1),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert set(done.stdout.split()) == offered


@pytest.mark.skipif(os.name == "nt", reason="closes streams as a shell does")
def test_closed_standard_streams_are_no_fault(checkpoint: Path, tmp_path: Path) -> None:
    def run(words: str, closed: str) -> tuple[int, str]:
        line = f'"$0" -m quantkit {words} {closed}'
        done = subprocess.run(["sh", "-c", line, sys.executable], capture_output=True, text=True, cwd=tmp_path)
        return done.returncode, done.stdout + done.stderr

    assert run(f"inspect {checkpoint}", ">&-") == (0, "")
    assert quantkit("gguf", checkpoint, "-t", "q8_0", "--no-logits", "--name", "m", "-o", tmp_path).code == 0
    assert run("run m-GGUF", "<&-") == (2, "quantkit: the prompt is empty; pass a text with -p TEXT\n")
