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
from quantkit.recipes.bake import process
from quantkit.recipes.bake.process import run_command, run_process
from tests.helpers.bake_steps import start_process
from tests.helpers.tiny import tiny_llama


@pytest.fixture(autouse=True)
def processes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a bake starts them for a user."""
    monkeypatch.setattr(process, "run_process", start_process)


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
from quantkit.recipes.bake.process import run_command, run_process

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
    deadline = time.monotonic() + 60
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert not (tmp_path / "model-AWQ").exists()


def test_a_command_imports_nothing_from_the_working_folder(tmp_path: Path) -> None:
    for name in ("quantkit", "numpy", "json", "typer", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("open('imported', 'w').close()\n")
    ended = run_process(["inspect", str(tiny_llama(tmp_path / "model"))], folder=tmp_path)
    assert ended.code == 0, ended.sentences
    assert not (tmp_path / "imported").exists()


STEP = """
import sys, time
from quantkit.cli.signals import interruptible
from quantkit.scratch import scratch_folder
with interruptible(), scratch_folder(sys.argv[1]):
    while True:
        try:
            print(flush=True)
            time.sleep(60)
        except KeyboardInterrupt:  # a step that does not end at the first signal
            pass
"""
PARENT = """
import subprocess, sys, time
from quantkit.cli.signals import interruptible
from quantkit.system.processes import dies_with_this_process, ends_at_once
with interruptible():
    step = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdout=subprocess.PIPE, **dies_with_this_process())
    with ends_at_once(step):
        step.stdout.readline()
        while True:
            try:
                print(flush=True)  # in the try: the first signal can come before the line's end
                time.sleep(60)
            except KeyboardInterrupt:
                pass
"""


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_two_interrupts_of_the_bake_alone_leave_no_folder_of_its_command(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, STEP, str(tmp_path)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    parent.stdout.readline()
    assert list(tmp_path.iterdir())
    deadline = time.monotonic() + 60
    while parent.poll() is None and time.monotonic() < deadline:  # two that come before one is handled are one
        parent.send_signal(signal.SIGINT)
        time.sleep(0.05)
    parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert not list(tmp_path.iterdir())
