"""The real runit: the machine's own, else Debian's package, unpacked once under .cache/runit and never installed."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.helpers.packages import CACHE

_TARGET = CACHE.parent / "runit"


def runit_or_skip() -> Path:
    """The folder that holds runsvdir, runsv, sv and svlogd."""
    runsvdir = shutil.which("runsvdir")
    if runsvdir is not None:
        return Path(runsvdir).parent
    tools = _TARGET / "usr" / "bin"
    if not tools.is_dir():
        if not all(map(shutil.which, ("apt-get", "dpkg-deb"))):
            pytest.skip("there is no runit here, and no apt-get to fetch it")
        _fetch()
    return tools


def _fetch() -> None:
    _TARGET.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_TARGET.parent) as scratch:
        folder = Path(scratch)
        for part in ("lists/partial", "archives/partial", "unpacked"):
            (folder / part).mkdir(parents=True)
        # Lists of its own, so that it needs no root and changes nothing of the machine's.
        apt = ["apt-get", "-qq", "-o", f"Dir::State={scratch}", "-o", f"Dir::Cache={scratch}"]
        apt += ["-o", f"Dir::State::Lists={scratch}/lists", "-o", "APT::Sandbox::User="]
        for command in ([*apt, "update"], [*apt, "download", "runit"]):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
            if done.returncode != 0:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                pytest.skip(f"there is no runit here, and it could not be downloaded: {last}")
        (package,) = folder.glob("runit_*.deb")
        subprocess.run(["dpkg-deb", "-x", package, folder / "unpacked"], check=True)
        shutil.rmtree(_TARGET, ignore_errors=True)
        (folder / "unpacked").rename(_TARGET)
