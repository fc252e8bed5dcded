"""Damaged files of every kind: one sentence, no traceback, no hang over 20 s, no 2 GB of memory, in any order."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.checkpoint_targets import QUANTIZED
from tests.fuzz.run import MOST_SECONDS

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    "config.json", "config.json, converted", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
    "tokenizer.model", "safetensors", "gguf", "gguf, planned", "imatrix", "old imatrix", "quantkit.json",
    "quantkit.json, card", "report.json", "Modelfile", "recipe", "journal of a conversion", "journal of a bake",
    "a.txt", "a.json", "a.jsonl", "a.jsonl.gz", "a.parquet", "recipe with a projector", "modules.json",
    "pooling's config.json", "config.json of an encoder", "tokenizer.json of an encoder", "config.json of a tower",
    "preprocessor_config.json", "index.json", "adapter_config.json", "adapter", "adapter, as a GGUF",
    *(f"{file} of {name}" for name in QUANTIZED for file in ("config.json", "safetensors")),
)  # fmt: skip


def fuzzed(folder: Path, seconds: float, count: int, *only: str) -> str:
    """What the process of tests.fuzz.run says; fails with its fault, or with the input at which it died."""
    words = [sys.executable, "-m", "tests.fuzz.run", str(folder), str(seconds), str(count), *only]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    at = (folder / "at").read_text() if (folder / "at").exists() else "before the first input"
    how = f"ended with {done.returncode} (SIGALRM: over {MOST_SECONDS} s) at {at}\n{done.stdout}\n{done.stderr[-3000:]}"
    assert done.returncode == 0, how
    return done.stdout


def test_damaged_files_get_one_sentence(tmp_path: Path) -> None:
    """A few seconds of all targets; each starts at its first input, so a failure comes again."""
    out = fuzzed(tmp_path, 5.0, 1000)
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert set(NAMES) - set(lines) <= {"a.parquet"}
    assert sum(int(line.split(" refused")[0].rsplit(" ", 1)[1]) for line in lines.values()) > 100


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_thousands_of_damaged_files_get_one_sentence(tmp_path: Path, name: str) -> None:
    if name == "a.parquet":
        pytest.importorskip("pyarrow")
    assert f"{name}: 5000 inputs" in fuzzed(tmp_path, 3000.0, 5000, name)
