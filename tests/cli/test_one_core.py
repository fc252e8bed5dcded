"""A process that may use one core plans one thread, in every command that converts."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.calibrated import SMALL
from tests.helpers.command import command, quantkit

PACKED = (("awq",), ("gptq",))


@pytest.fixture
def one_core() -> Iterator[str]:
    """This thread on one core; its number."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield str(min(cores))
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.usefixtures("every_core")
@pytest.mark.parametrize("preset", ["gguf", "awq", "gptq", "imatrix", "convert"])
def test_pinned_to_one_core_every_command_plans_one_thread(
    preset: str, narrow: Path, tmp_path: Path, one_core: str
) -> None:
    types = [("-t", kind) for kind in ("awq", "gptq", "imatrix", "q4_0")] if preset == "convert" else [()]
    for kind in types:
        more = SMALL if preset in ("awq", "gptq") else ("--group-size", "32") if kind[-1:] in PACKED else ()
        answer = quantkit(preset, narrow, *kind, *more, "--dry-run", "--format", "json", cwd=tmp_path)
        assert answer.code == 0, answer.stderr
        assert json.loads(answer.stdout)["threads"] == 1


def test_a_process_that_is_pinned_to_one_core_plans_one_thread(narrow: Path, tmp_path: Path) -> None:
    words = command("gguf", narrow, "-t", "q4_0", "--dry-run", "--format", "json")
    pinned = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *words]
    done = subprocess.run(pinned, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout)["threads"] == 1
