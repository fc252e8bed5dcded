"""A Python environment of its own under .cache, for packages that quantkit's environment must not see."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from quantkit.system.python import tomllib
from tests.helpers.packages import CACHE

ROOT = Path(__file__).resolve().parents[2]
_SECONDS = 280
"""For an installation: under the time limit of a test."""


def dependencies(*extras: str) -> list[str]:
    """The requirements of quantkit and of these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]


def cached_environment(name: str, packages: Sequence[str]) -> Path:
    """The Python of `.cache/NAME` with `packages`, installed on first use; the test is skipped where they cannot be."""
    folder = CACHE.parent / name
    python = folder / "bin" / "python"
    stamp = folder / "packages.json"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.is_file() and json.loads(stamp.read_text("utf-8")) == list(packages):
            return python
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip(f"{name} was not installed within {_SECONDS} s")
        if done.returncode:
            pytest.skip(f"{name} cannot be installed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        stamp.write_text(json.dumps(list(packages)), "utf-8")
    return python


def outside(python: Path, **variables: str) -> dict[str, str]:
    """The environment variables of a process that `python`'s programs come first for and that sees no checkout."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**inherited, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", **variables}
