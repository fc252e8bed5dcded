"""PEFT in a Python of its own, beside torch and transformers of the newest converter; installed on first use."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.peer import REPOSITORY, newest_converter

_PACKAGES = ("peft==0.21.2", "accelerate==1.14.0", "psutil==7.2.2")
_FOLDER = REPOSITORY / ".cache" / "peft"


def run_peft(jobs: Sequence[Mapping[str, Any]], folder: Path) -> list[dict[str, np.ndarray]]:
    """The answers of tests.adapters.with_peft to `jobs`; `folder` is for files in between."""
    python = newest_converter().python
    if not (_FOLDER / "peft").exists():
        command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(_FOLDER), *_PACKAGES]
        subprocess.run(command, check=True)
    complete = [{**job, "out": str(folder / f"{number}.npz")} for number, job in enumerate(jobs)]
    (folder / "jobs.json").write_text(json.dumps(complete))
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{_FOLDER}", "HF_HUB_OFFLINE": "1"}
    command = [str(python), "-m", "tests.adapters.with_peft", str(folder / "jobs.json")]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [dict(np.load(job["out"])) for job in complete]
