"""Temporary folders: in use they are locked; those of processes that were killed are removed by the next one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantkit import scratch

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows locks no folders")
MAKE = "import sys, os, signal; from quantkit.scratch import make_scratch; f = make_scratch(sys.argv[1])"
FILL = "(f / 'spool').write_bytes(b'x'); print(f, flush=True)"


def left_by_a_kill(parent: Path) -> Path:
    """A folder whose process got SIGKILL."""
    script = f"{MAKE}; {FILL}; os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", script, parent], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    folder = Path(done.stdout.strip())
    assert (folder / "spool").exists()
    return folder


@pytest.fixture(autouse=True)
def first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "_tidied", set())


def test_a_folder_of_a_killed_process_is_removed_by_the_next_one(tmp_path: Path) -> None:
    left = left_by_a_kill(tmp_path)
    with scratch.scratch_folder(str(tmp_path)) as folder:
        assert not left.exists() and folder.is_dir()
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_stays_whatever_its_process_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another container it has a number that this one does not know."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{MAKE}; {FILL}; sys.stdin.read()", tmp_path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    used = Path(process.stdout.readline().strip())
    monkeypatch.setattr(scratch.processes, "has_ended", lambda pid: True)
    with scratch.scratch_folder(str(tmp_path)):
        assert (used / "spool").exists()
    monkeypatch.undo()
    process.kill()
    process.communicate()


@pytest.mark.parametrize("function", ["quantkit.scratch.Path.mkdir", "quantkit.scratch.make_scratch"])
def test_a_signal_just_after_a_folder_is_made_leaves_nothing(tmp_path: Path, function: str) -> None:
    script = f"""
import os, signal, sys
from unittest.mock import patch
from quantkit import scratch
from quantkit.cli.signals import interruptible
make = {function.removeprefix("quantkit.")}
def made(*arguments, **settings):
    folder = make(*arguments, **settings)
    os.kill(os.getpid(), signal.SIGTERM)
    return folder
with interruptible(), patch({function!r}, made), scratch.scratch_folder(sys.argv[1]):
    sys.exit(0)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False)
    assert "Terminated" in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["link", "another name", "writable by others"])
def test_what_is_not_a_folder_of_this_user_alone_stays(tmp_path: Path, kind: str) -> None:
    left = left_by_a_kill(tmp_path)
    inside = left / "spool"
    if kind == "link":
        moved = tmp_path / "elsewhere"
        left.rename(moved)
        left.symlink_to(moved)
    elif kind == "another name":
        inside = left.rename(tmp_path / "quantkit-notes") / "spool"
    else:
        left.chmod(0o777)
    with scratch.scratch_folder(str(tmp_path)):
        pass
    assert inside.exists()
