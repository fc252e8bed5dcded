"""Recipes spread by Ray: a real Ray with two workers, in an environment of its own under .cache."""

import hashlib
import json
import os
import signal
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from tests.helpers.cached_environment import ROOT, cached_environment, dependencies, outside
from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama

RAY = "ray==2.60.0"
RECIPE = """\
version = 1

[model]
name = "NAME"
source = "./model"
chat_template = "chatml"

[formats]
gguf = ["q8_0", "q4_0"]
awq = { group_size = 32 }
gptq = { group_size = 32 }

[calibration]
samples = 24
seq_len = LENGTH
chat = false
"""
CONVERT = ("--only", "convert", "--format", "json")


@pytest.fixture(scope="module")
def python() -> Path:
    """An interpreter that has Ray."""
    return cached_environment("ray", [RAY, *dependencies()])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    tiny_llama(folder / "model", variant="llama3", hidden=64, intermediate=96, layers=6)
    for name, length in (("one", "64"), ("two", "96")):
        (folder / f"{name}.toml").write_text(RECIPE.replace("NAME", name).replace("LENGTH", length), "utf-8")
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in ("*.gguf", "*.safetensors")
        for path in folder.rglob(pattern)
    }


@pytest.fixture(scope="module")
def plain(home: Path) -> dict[str, str]:
    answer = quantkit("bake", "one.toml", "two.toml", "-o", "plain", *CONVERT, cwd=home)
    assert answer.code == 0, answer.stderr
    return hashes(home / "plain")


def bake(python: Path, home: Path, out: Path) -> "subprocess.Popen[str]":
    words = [python, "-m", "quantkit", "bake", "one.toml", "two.toml", "-o", out, "--ray", "local", *CONVERT]
    variables = outside(python, PYTHONPATH=str(ROOT))
    return subprocess.Popen(words, cwd=home, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.full
def test_two_workers_make_the_bytes_of_a_plain_run(
    python: Path, home: Path, plain: dict[str, str], tmp_path: Path
) -> None:
    answer, errors = (running := bake(python, home, tmp_path)).communicate(timeout=280)
    assert running.returncode == 0, errors
    assert [recipe["name"] for recipe in json.loads(answer)["recipes"]] == ["one", "two"]
    assert hashes(tmp_path) == plain and len(plain) == 8


@pytest.mark.full
def test_a_killed_worker_is_retried_and_the_bytes_are_the_same(
    python: Path, home: Path, plain: dict[str, str], tmp_path: Path
) -> None:
    running = bake(python, home, tmp_path)
    worker = _at_work(running.pid, tmp_path)
    os.kill(worker, signal.SIGKILL)
    answer, errors = running.communicate(timeout=280)
    assert running.returncode == 0, errors
    assert hashes(tmp_path) == plain
    journal = (tmp_path / "one.bake.journal").read_text("utf-8")
    assert journal.count('"finished"') == 4
    assert json.loads(answer)["failed"] == []


def _at_work(bake_id: int, folder: Path) -> int:
    """The Ray worker under which the conversion of the recipe `one` is running, once it has begun to write."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for process in psutil.Process(bake_id).children(recursive=True):
            try:
                words = process.cmdline()
                if "convert" in words and "one" in words and list(folder.glob("one-AWQ*")):
                    bake, worker = process.parents()[:2]
                    assert "bake" in bake.cmdline()
                    return worker.pid
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.02)
    raise AssertionError("no conversion was seen at work")


@pytest.mark.full
def test_a_cluster_that_is_not_there_is_one_sentence(python: Path, home: Path, tmp_path: Path) -> None:
    words = [python, "-m", "quantkit", "bake", "one.toml", "-o", tmp_path, "--ray", "127.0.0.1:1", *CONVERT]
    variables = outside(python, PYTHONPATH=str(ROOT))
    done = subprocess.run(words, cwd=home, env=variables, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1 and "quantkit: Ray at 127.0.0.1:1 cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_the_sentence_has_the_command_to_install_it(home: Path, tmp_path: Path) -> None:
    answer = quantkit("bake", "one.toml", "-o", tmp_path, "--ray", "local", cwd=home)
    assert answer.code == 1 and "pip install 'quantkit[ray]'" in answer.sentence
