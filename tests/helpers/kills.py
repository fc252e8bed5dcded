"""Processes that get a signal at a certain point of their work, and those that are left."""

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.helpers.forked import LLAMA_CHILD, forks

_ATTEMPTS = 20


def descendants() -> set[psutil.Process]:
    """The processes below this one. The interpreter that forks llama.cpp's children, which stays, has been started."""
    forks(modules=LLAMA_CHILD)
    return set(psutil.Process().children(recursive=True))


def disturbed(
    start: Callable[[], "subprocess.Popen[Any]"],
    at_the_point: Callable[[], bool],
    disturb: Callable[["subprocess.Popen[Any]"], None],
    made: Path,
) -> "subprocess.Popen[Any]":
    """A process of `start` that was running when `disturb` came, just after `at_the_point` became true.

    On a busy machine a process can end before its turn to be disturbed comes. What it made, the folder `made`, is then
    removed, and another one starts.
    """
    for _ in range(_ATTEMPTS):
        process = start()
        while process.poll() is None and not at_the_point():
            time.sleep(0.002)
        if process.poll() is None:
            disturb(process)
        process.wait()
        if process.returncode != 0:
            return process
        shutil.rmtree(made)
    raise AssertionError(f"{_ATTEMPTS} processes ended before they were disturbed")
