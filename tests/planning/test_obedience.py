"""The plan's figure obeyed: llama.cpp runs in that much memory, and not in much less."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantkit.planning.budget import Budget, fit_offer
from quantkit.planning.context import Context
from quantkit.planning.sizes import offers
from quantkit.planning.sources import open_source
from tests.helpers.command import quantkit
from tests.helpers.real import smollm2 as smollm2
from tests.planning.llama_memory import REPOSITORY


@pytest.fixture(scope="module")
def q8_0(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("q8_0")
    done = quantkit("gguf", smollm2, "-t", "q8_0", "-o", folder, "--no-logits")
    assert done.code == 0, done.stderr
    (path,) = folder.rglob("*.gguf")
    return path


def run(path: Path, n_ctx: int, limit: int) -> int:
    """The exit code of llama.cpp under a limit of address space on top of what the bare process takes.

    One thread and one heap, whose reserves of address space nobody uses would count otherwise.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "GGML_NO_BACKTRACE": "1"}
    command = [sys.executable, "-m", "tests.planning.limited_run", str(path), str(n_ctx), str(limit)]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, check=False).returncode


# test_memory.py compares the plan for 512 tokens with llama.cpp's own account
@pytest.mark.parametrize("n_ctx", [pytest.param(512, marks=pytest.mark.full), 8192])
def test_smollm2_runs_in_the_planned_memory_and_five_percent(n_ctx: int, q8_0: Path) -> None:
    source = open_source(str(q8_0))
    (offer,) = offers(source, None)
    need = fit_offer(source.shape, offer, Context(n_ctx=n_ctx), Budget(10**12)).memory.total
    assert run(q8_0, n_ctx, int(1.05 * need)) == 0
    assert run(q8_0, n_ctx, int(0.8 * need)) != 0
    assert not fit_offer(source.shape, offer, Context(n_ctx=n_ctx), Budget(int(0.8 * need))).fits
