"""A 64-bit ARM Linux without ARM hardware and without root: Debian's qemu-user-static and a few arm64 packages.

They are downloaded into .cache/arm64 and unpacked there, never installed. The processor is emulated instruction by
instruction, so what a program computes is what the real one would; its speed tells nothing.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.packages import CACHE

_TARGET = CACHE.parent / "arm64"
_QEMU = "qemu-user-static"
_PACKAGES = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1", "libstdc++6"),
    *("zlib1g", "libexpat1", "libssl3", "libffi8", "libgomp1", "libbz2-1.0", "liblzma5", "libuuid1"),
)


@dataclass(frozen=True)
class Arm64:
    """A Python of arm64, and where the wheels lie that were asked for, for it and for this machine."""

    qemu: Path
    root: Path
    wheels: Path
    native: Path

    def python(self, *words: str | Path, cpu: str = "cortex-a76", timeout: int = 600) -> str:
        """What python3.11 on `cpu` prints."""
        command = [self.qemu, "-cpu", cpu, "-L", self.root, self.root / "usr" / "bin" / "python3.11", *words]
        return _python(command, self.wheels, timeout)

    def native_python(self, *words: str | Path, timeout: int = 600) -> str:
        """What this machine's own Python prints, with the same packages."""
        return _python([sys.executable, *words], self.native, timeout)


def arm64_or_skip(package: str, version: str) -> Arm64:
    """The emulated machine with a PyPI package of which there are wheels for both processors."""
    if os.uname().machine != "x86_64" or not all(map(shutil.which, ("apt-get", "dpkg-deb"))):
        pytest.skip("the emulated ARM is set up with apt-get on x86-64 only")
    target = _TARGET / f"{package}-{version}"
    if not target.is_dir():
        _TARGET.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_TARGET) as scratch:
            folder = Path(scratch)
            _debian(folder / "qemu", os.uname().machine, (_QEMU,))
            _debian(folder / "root", "arm64", _PACKAGES)
            for name, platform in (("wheels", "manylinux2014_aarch64"), ("native", "manylinux2014_x86_64")):
                _wheel(folder / name, f"{package}=={version}", platform)
            (folder / "made").mkdir()
            for name in ("qemu", "root", "wheels", "native"):
                (folder / name).rename(folder / "made" / name)
            (folder / "made").rename(target)
    qemu = target / "qemu" / "usr" / "bin" / "qemu-aarch64-static"
    return Arm64(qemu, target / "root", target / "wheels", target / "native")


def _debian(target: Path, machine: str, packages: tuple[str, ...]) -> None:
    """Unpack Debian packages of one architecture, with lists of its own."""
    architecture = {"x86_64": "amd64"}.get(machine, machine)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        for folder in ("lists/partial", "archives/partial", "debs"):
            (Path(scratch) / folder).mkdir(parents=True)
        apt = ["apt-get", "-qq", "-o", f"Dir::State={scratch}", "-o", f"Dir::State::Lists={scratch}/lists"]
        apt += ["-o", "Dir::State::status=/dev/null", "-o", f"Dir::Cache={scratch}", "-o", "APT::Sandbox::User="]
        apt += ["-o", f"APT::Architecture={architecture}", "-o", f"APT::Architectures={architecture}"]
        for command in ([*apt, "update"], [*apt, "download", *packages]):
            _try(command, Path(scratch) / "debs")
        for package in (Path(scratch) / "debs").glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, target], check=True)


def _wheel(target: Path, requirement: str, platform: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps"]
    command += ["--only-binary", ":all:", "--python-version", "3.11", "--platform", platform, "--target", str(target)]
    _try([*command, requirement], target.parent)


def _try(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        pytest.skip(f"the emulated ARM could not be set up: {last}")


def _python(command: list[str | Path], packages: Path, timeout: int) -> str:
    env = {**os.environ, "PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
