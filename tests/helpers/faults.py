"""Runs of quantkit in which one file operation fails or kills the process, counted by a library under LD_PRELOAD."""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.command import Answer, command

KILL = 0
"""In place of an error number: the process is killed before the call."""
READS, WRITES = "r", "wsnt"


@functools.cache
def library() -> Path:
    """tests/helpers/faults.c, compiled; the test is skipped where that is not possible."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("faults are injected on Linux, with a C compiler")
    built = Path(tempfile.gettempdir()) / f"quantkit-tests-faults-{os.getpid()}.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", built, source, "-ldl"], check=True)
    return built


@dataclass(frozen=True)
class Faulty:
    """A run and how many of the operations that count it has made; a killed run has the code -9."""

    answer: Answer
    operations: int


def faulty(
    *words: str | Path, under: Path, calls: str, at: int = 0, error: int = KILL, cwd: Path | None = None
) -> Faulty:
    """Run `quantkit WORDS...`; operation `at` (from 1) of the kinds `calls` on files below `under` meets `error`.

    `at` 0: nothing fails, the operations are counted. One thread, so that the same number is the same operation.
    """
    with tempfile.NamedTemporaryFile() as state:
        state.write(bytes(8))
        state.flush()
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library()),
            "FAULTS_STATE": state.name,
            "FAULTS_UNDER": str(under),
            "FAULTS_CALLS": calls,
            "FAULTS_AT": str(at),
            "FAULTS_ERRNO": str(error),
            "COLUMNS": "80",
        }
        done = subprocess.run(
            command(*words), cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        state.seek(0)
        count = int.from_bytes(state.read(8), "little")
    return Faulty(Answer(done.returncode, done.stdout, done.stderr), count)
