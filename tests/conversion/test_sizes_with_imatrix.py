"""An importance matrix changes the types of single tensors and adds keys: plan and dry run count both, to the byte."""

import json
from pathlib import Path

import pytest

from quantkit.gguf.file_types import FILE_TYPES
from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama

CUT = ("--samples", "4", "--seq-len", "32")
TYPES = ("-t", "q4_0", "-t", "q4_k_m", "-t", "iq4_xs")
# its mix has IQ2_S, whose search table takes ggml four seconds
SLOW = ("-t", "iq3_xxs")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("source") / "model", variant="llama3", intermediate=256, layers=8)


def sizes(source: Path, *words: str | Path) -> dict[str, int]:
    """Bytes of each file by name, as a dry run states them."""
    answer = quantkit("gguf", source, *words, "--dry-run", "--format", "json")
    assert answer.code == 0, answer.stderr
    return {file["name"]: file["bytes"] for out in json.loads(answer.stdout)["outputs"] for file in out["files"]}


@pytest.mark.parametrize(
    ("given", "types"),
    [
        ("calibrated here", TYPES),
        ("a file", TYPES),
        pytest.param("a file", SLOW, marks=pytest.mark.full),
    ],
)
def test_a_dry_run_with_an_importance_matrix_states_the_size_of_the_file(
    given: str, types: tuple[str, ...], source: Path, tmp_path: Path
) -> None:
    words: tuple[str | Path, ...] = ("--calibrate", *CUT)
    if given == "a file":
        assert quantkit("imatrix", source, *CUT, "-o", tmp_path / "matrix.gguf").code == 0
        words = ("--imatrix", tmp_path / "matrix.gguf")
    stated = sizes(source, *types, *words, "-o", tmp_path)
    answer = quantkit("gguf", source, *types, *words, "-o", tmp_path, "--no-logits")
    assert answer.code == 0, answer.stderr
    written = {path.name: path.stat().st_size for path in (tmp_path / "model-GGUF").glob("*.gguf")}
    assert written == stated
    # llama.cpp makes tensors of q4_0 q4_1 with a matrix, so these are more than its keys
    if "q4_0" in types:
        assert stated["model-Q4_0.gguf"] - sizes(source, "-t", "q4_0", "-o", tmp_path)["model-Q4_0.gguf"] > 1000


@pytest.fixture(scope="module")
def matrix(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("matrix") / "a matrix.gguf"
    assert quantkit("imatrix", source, *CUT, "-o", path).code == 0
    return path


def planned(source: Path, *words: str | Path) -> dict[str, int]:
    """Bytes of each type as `plan` states them."""
    answer = quantkit("plan", source, *words, "--ram", "8G", "--vram", "0", "--bandwidth", "1G", "--format", "json")
    assert answer.code == 0, answer.stderr
    return {row["type"]: row["bytes"] for row in json.loads(answer.stdout)["types"]}


@pytest.mark.parametrize("given", ["a matrix", "no matrix"])
def test_plan_and_dry_run_state_the_same_size_of_every_type(
    given: str, source: Path, matrix: Path, tmp_path: Path
) -> None:
    with_matrix = given == "a matrix"
    kinds = [kind for kind in FILE_TYPES.values() if with_matrix or not kind.needs_imatrix]
    words: list[str | Path] = [word for kind in kinds for word in ("-t", kind.name)]
    words += ["--imatrix", matrix] if with_matrix else []
    stated = sizes(source, *words, "-o", tmp_path)
    assert planned(source, *words) == {kind.name: stated[f"model-{kind.label}.gguf"] for kind in kinds}


def test_plan_with_an_importance_matrix_states_the_size_of_the_file_and_the_command_that_makes_it(
    source: Path, matrix: Path, tmp_path: Path
) -> None:
    words = (*TYPES, "--imatrix", matrix)
    answer = quantkit("gguf", source, *words, "-o", tmp_path, "--no-logits")
    assert answer.code == 0, answer.stderr
    files = (tmp_path / "model-GGUF").glob("*.gguf")
    assert planned(source, *words) == {path.stem[6:].lower(): path.stat().st_size for path in files}
    shown = quantkit("plan", source, "-t", "q4_0", "--imatrix", matrix, "--ram", "8G", "--vram", "0")
    assert f"-t q4_0 --imatrix '{matrix}'" in shown.stdout


def test_plan_refuses_an_importance_matrix_of_another_model_and_one_without_a_gguf_type(
    source: Path, matrix: Path, tmp_path: Path
) -> None:
    other = tiny_llama(tmp_path / "other", variant="llama3", hidden=128)
    wrong = quantkit("plan", other, "--imatrix", matrix, "--ram", "8G")
    assert wrong.code == 1 and "belongs to another model" in wrong.sentence
    idle = quantkit("plan", source, "-t", "awq", "--imatrix", matrix, "--ram", "8G")
    assert idle.code == 2 and "--imatrix has no effect without a GGUF type" in idle.sentence


def test_a_plan_for_a_phone_counts_the_types_that_its_calibration_changes(source: Path, tmp_path: Path) -> None:
    """--preset phone calibrates; the keys of the matrix, a few hundred bytes, are not counted."""
    answer = quantkit("plan", source, "--phone", "8G", "--format", "json")
    (row,) = (row for row in json.loads(answer.stdout)["types"] if row["type"] == "q4_0")
    made = sizes(source, "--preset", "phone", *CUT, "-o", tmp_path)["model-Q4_0.gguf"]
    assert 0 < made - row["bytes"] < 500
