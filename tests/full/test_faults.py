"""Every read, write, fsync and rename of a run fails in turn, or is where it is killed: nothing is lost, same bytes."""

import errno
import hashlib
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command import quantkit_process
from tests.helpers.faults import KILL, READS, WRITES, faulty
from tests.helpers.tiny import tiny_llama

FEW = ("--samples", "8", "--seq-len", "32", "--raw", "--group-size", "32", "--threads", "1")
RUNS: dict[str, tuple[str, ...]] = {
    "convert": ("convert", "model", "-t", "awq", "-t", "q8_0", "-t", "imatrix", *FEW, "-o", "out"),
    "shards": ("gguf", "model", "-t", "q8_0", "--split-max-size", "100k", "--threads", "1", "-o", "out"),
    "gptq": ("gptq", "model", *FEW, "-o", "out"),
    "imatrix": ("imatrix", "model", *FEW[:5], "--threads", "1", "-o", "out/model-imatrix.gguf"),
    "measure": (
        "measure", "model", "model-GGUF/model-Q8_0.gguf", "--text", "text.txt", "--ctx", "32", "--chunks", "2",
        "--gpu-layers", "none", "--threads", "1", "-o", "out",
    ),
    "bake": ("bake", "recipe.toml", "--threads", "1", "-o", "out"),
}  # fmt: skip
RECIPE = """
version = 1
[model]
name = "tiny"
source = "./model"
[formats]
gguf = ["q8_0"]
awq = { group_size = 32 }
[calibration]
samples = 8
seq_len = 32
chat = false
"""
CASES = [("reads of the source", "model", READS, errno.EIO), ("reads of the output", "out", READS, errno.EIO),
         ("writes", "out", WRITES, errno.ENOSPC), ("kills", "out", WRITES, KILL)]  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A folder with the inputs; `clean` removes the outputs, `facts` reads them."""

    folder: Path

    def clean(self) -> None:
        shutil.rmtree(self.folder / "out", ignore_errors=True)

    def facts(self) -> dict[str, Any]:
        """Every file of the output: its sha256, or, of a document, all but times, memory and measured speed."""
        out = self.folder / "out"
        files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.suffix not in (".journal", ".png")]
        return {str(path.relative_to(out)): _facts(path) for path in files}


def _facts(path: Path) -> Any:
    if path.suffix == ".json":
        return _without_times(json.loads(path.read_text("utf-8")))
    if path.suffix in (".md", ".html"):
        return "a document of the others"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        timed = ("written", "seconds", "peak_memory_bytes", "date", "created", "memory", "speed", "machine")
        return {name: _without_times(item) for name, item in value.items() if name not in timed}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("faults")
    tiny_llama(folder / "model", variant="llama3", hidden=64, intermediate=96)
    (folder / "text.txt").write_text("A short text to measure on. " * 20)
    (folder / "recipe.toml").write_text(RECIPE)
    made = quantkit_process("gguf", "model", "-t", "q8_0", cwd=folder)
    assert made.code == 0, made.stderr
    return Place(folder)


def check(place: Place, run: str, folder: str, calls: str, error: int, numbers: list[int] | None, some: int) -> None:
    """Faults at `numbers`, or at `some` random operations: one sentence, then the undisturbed run's files."""
    words, under = RUNS[run], place.folder / folder
    place.clean()
    sound = faulty(*words, under=under, calls=calls, cwd=place.folder)
    assert sound.answer.code == 0, sound.answer.stderr
    expected = place.facts()
    if numbers is None:
        numbers = sorted(random.Random(run + folder + calls).sample(range(1, sound.operations + 1), some))
    for number in numbers:
        place.clean()
        at = f"operation {number} of {sound.operations}"
        fault = faulty(*words, under=under, calls=calls, at=number, error=error, cwd=place.folder)
        if error == KILL:
            # of bake it may be a step's process that is killed
            assert fault.answer.code in (-9, 1), (at, fault.answer)
        else:
            assert "Traceback" not in fault.answer.stderr and "unexpected" not in fault.answer.stderr, (at, fault)
            assert fault.answer.code in (0, 1, 2), (at, fault.answer)
            assert fault.answer.code == 0 or fault.answer.sentence, at
        assert not list(place.folder.glob("out/**/*.failed")), at
        if fault.answer.code == 0:
            assert place.facts() == expected, at
            continue
        again = quantkit_process(*words, cwd=place.folder)
        assert again.code == 0, (at, fault.answer, again)
        assert place.facts() == expected, (at, fault.answer)


@pytest.mark.parametrize(("run", "case"), [("convert", 0), ("convert", 1), ("convert", 2), ("shards", 3)])
def test_a_few_faults_cost_nothing(place: Place, run: str, case: int) -> None:
    _, folder, calls, error = CASES[case]
    check(place, run, folder, calls, error, None, 2)


@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
@pytest.mark.parametrize("run", RUNS)
def test_every_fault_costs_nothing(place: Place, run: str, case: tuple[str, str, str, int]) -> None:
    _, folder, calls, error = case
    words = RUNS[run]
    place.clean()
    count = faulty(*words, under=place.folder / folder, calls=calls, cwd=place.folder).operations
    check(place, run, folder, calls, error, list(range(1, count + 1)), 0)
