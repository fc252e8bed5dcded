"""A step's process: its answer, its error sentence, and that it does not outlive the bake."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from quantkit.errors import CheckpointError, QuantkitError, UsageError
from quantkit.recipes.bake.process import run_command
from tests.helpers.tiny import tiny_llama


class Items:
    """A Progress that keeps its items."""

    def __init__(self) -> None:
        self.items: list[str] = []

    def start(self, stage: str, total: int = 0) -> None: ...

    def advance(self, amount: int = 1, item: str = "") -> None:
        self.items.append(item)


def test_a_command_gives_its_document_its_time_and_its_peak(tmp_path: Path) -> None:
    progress = Items()
    model = tiny_llama(tmp_path / "model", hidden=64, intermediate=96)
    words = ("gguf", str(model), "-t", "q8_0", "--dry-run", "-o", str(tmp_path))
    done = run_command(words, progress)
    assert done.document["command"] == "gguf" and done.document["name"] == "model"
    # a child starts with the peak of this process
    here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert done.seconds > 0 and 20e6 < done.peak_memory < 2e9 + here
    assert any("needs" in item for item in progress.items)


@pytest.mark.parametrize(
    ("words", "kind", "sentence"),
    [
        (("gguf", "nowhere", "-t", "q8_0"), QuantkitError, "neither an existing folder nor a hub id"),
        (("gguf", "nowhere", "-t", "q9"), UsageError, "unknown quantization type 'q9'"),
        (("gguf", "--nonsense"), UsageError, ""),
    ],
)
def test_a_failure_comes_through_as_its_one_sentence(
    words: tuple[str, ...], kind: type[QuantkitError], sentence: str
) -> None:
    with pytest.raises(kind) as caught:
        run_command(words)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert not isinstance(caught.value, CheckpointError)


BAKE = """
import sys
from quantkit.recipes.bake.process import run_command

class Lines:
    def start(self, stage, total=0): ...

    def advance(self, amount=1, item=""):
        print(item, flush=True)

run_command(sys.argv[1:], Lines())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_a_killed_bake_takes_its_command_with_it(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model", layers=12)
    words = ["awq", str(model), "--samples", "64", "--seq-len", "256", "-o", str(tmp_path)]
    bake = subprocess.Popen([sys.executable, "-c", BAKE, *words], stdout=subprocess.PIPE, text=True)
    assert bake.stdout is not None and bake.stdout.readline()
    (child,) = psutil.Process(bake.pid).children()
    os.kill(bake.pid, signal.SIGKILL)
    bake.wait()
    deadline = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert not (tmp_path / "model-AWQ").exists()
