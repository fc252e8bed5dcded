"""A Python without the modules and functions of Unix, as on Windows: quantkit is imported and every command answers."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from quantkit.cli import COMMANDS
from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama

CONVERT = (
    *("convert", "model", "-t", "q8_0", "-t", "q4_k_m", "-t", "awq", "--raw"),
    *("--samples", "8", "--seq-len", "32", "--group-size", "32", "--threads", "2"),
)

WITHOUT_UNIX = """
import importlib.abc, os, signal, sys

class Missing(importlib.abc.MetaPathFinder):
    names = {"fcntl", "resource", "pwd", "grp", "termios", "readline"}

    def find_spec(self, name, path=None, target=None):
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

import shutil, subprocess, tempfile, threading  # the standard library asks at import which functions there are
import numpy  # on Linux it calls os.uname
for name in list(sys.modules):
    if name in Missing.names:
        del sys.modules[name]
sys.meta_path.insert(0, Missing())
for name in (
    "sched_getaffinity", "pread", "preadv", "pwrite", "pwritev", "posix_fallocate", "fdatasync", "fchmod", "fchown",
    "geteuid", "getuid", "getgid", "getegid", "sysconf", "uname", "wait4", "fork", "killpg", "setsid", "mkfifo",
    "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY", "memfd_create", "getloadavg", "nice",
):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGPIPE", "SIGUSR1", "SIGALRM"):
    delattr(signal, name)
"""


def run_without_unix(code: str, *words: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_UNIX + code, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "COLUMNS": "80", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def test_every_command_shows_its_help(tmp_path: Path) -> None:
    code = """
from quantkit.cli import COMMANDS, app
for words in ([], *([name] for name in COMMANDS)):
    try:
        app(args=[*words, "--help"], prog_name="quantkit")
    except SystemExit as end:
        assert not end.code, words
"""
    done = run_without_unix(code, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Usage: quantkit") == 1 + len(COMMANDS)


def test_a_conversion_gives_the_bytes_of_a_full_python(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model", variant="llama3", hidden=64, intermediate=96)
    assert quantkit(*CONVERT, "-o", "whole", cwd=tmp_path).code == 0
    done = run_without_unix("from quantkit.cli import main; main()", *CONVERT, "-o", "bare", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    made = hashes(tmp_path / "bare")
    assert made == hashes(tmp_path / "whole")
    assert {Path(name).suffix for name in made} >= {".gguf", ".safetensors"}
    assert not list((tmp_path / "bare").rglob("*partial*"))


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "quantkit.json"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
