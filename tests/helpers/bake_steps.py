"""The steps of `quantkit bake` in the test's process, which saves the second that each process takes to start.

tests/recipes/test_bake_process.py tests the processes that bake itself starts.
"""

import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from quantkit.progress import SILENT, Progress
from quantkit.recipes.bake import process
from quantkit.recipes.bake.process import Ended
from quantkit.system import memory
from tests.helpers.command import quantkit_here

start_process = process.run_process


def run_here(
    words: Sequence[str],
    progress: Progress = SILENT,
    warn: Callable[[str], object] = lambda text: None,
    folder: Path | None = None,
) -> Ended:
    """`run_process` without a process; `peak_memory` is that of this process."""
    started = time.monotonic()
    answer = quantkit_here(*words, "--format", "json", cwd=folder)
    sentences: list[str] = []
    # what listens to a process reads the lines of its stderr
    lines = SimpleNamespace(stderr=answer.stderr.splitlines())
    process._listen(cast("Any", lines), progress, warn, sentences)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * memory.resident_unit()
    return Ended(answer.code, answer.stdout, tuple(sentences), time.monotonic() - started, peak)
