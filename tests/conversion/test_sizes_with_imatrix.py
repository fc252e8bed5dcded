"""An importance matrix changes the types of single tensors and adds keys: a dry run counts both, to the byte."""

import json
from pathlib import Path

import pytest

from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama

CUT = ("--samples", "4", "--seq-len", "32")
TYPES = ("-t", "q4_0", "-t", "q4_k_m", "-t", "iq3_xxs")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("source") / "model", variant="llama3", layers=8)


def sizes(source: Path, *words: str | Path) -> dict[str, int]:
    """Bytes of each file by name, as a dry run states them."""
    answer = quantkit("gguf", source, *words, "--dry-run", "--format", "json")
    assert answer.code == 0, answer.stderr
    return {file["name"]: file["bytes"] for out in json.loads(answer.stdout)["outputs"] for file in out["files"]}


@pytest.mark.parametrize("given", ["calibrated here", "a file"])
def test_a_dry_run_with_an_importance_matrix_states_the_size_of_the_file(
    given: str, source: Path, tmp_path: Path
) -> None:
    words: tuple[str | Path, ...] = ("--calibrate", *CUT)
    if given == "a file":
        assert quantkit("imatrix", source, *CUT, "-o", tmp_path / "matrix.gguf").code == 0
        words = ("--imatrix", tmp_path / "matrix.gguf")
    stated = sizes(source, *TYPES, *words, "-o", tmp_path)
    answer = quantkit("gguf", source, *TYPES, *words, "-o", tmp_path, "--no-logits")
    assert answer.code == 0, answer.stderr
    written = {path.name: path.stat().st_size for path in (tmp_path / "model-GGUF").glob("*.gguf")}
    assert written == stated
    # llama.cpp makes tensors of q4_0 q4_1 with a matrix, so these are more than its keys
    assert stated["model-Q4_0.gguf"] - sizes(source, "-t", "q4_0", "-o", tmp_path)["model-Q4_0.gguf"] > 1000
