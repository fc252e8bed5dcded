"""After TERM, INT (also twice) and the death of a child nothing is left in /tmp or /dev/shm, and a rerun resumes."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.helpers.command import command, quantkit
from tests.helpers.forked import run_process
from tests.helpers.kills import disturbed
from tests.helpers.tiny import tiny_llama

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/shm is Linux's")

SHARED = Path("/dev/shm")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("source") / "model", variant="llama3", hidden=256, layers=6)


def words(model: Path, out: Path) -> list[str]:
    return command("gguf", model, "-t", "q8_0", "-t", "q4_0", "-t", "q5_0", "-t", "f16", "-o", out, "--threads", "1")


def scratch(pid: int, temporary: Path) -> list[Path]:
    return [path for folder in (temporary, SHARED) for path in folder.glob(f"quantkit-{pid}-*")]


Process = subprocess.Popen[str]


def disturbed_check(model: Path, folder: Path, disturb: Callable[[Process], None]) -> Process:
    """A conversion into FOLDER/out that has a temporary folder in FOLDER/tmp when it is disturbed: llama.cpp's check
    is at work.
    """
    out, temporary, running = folder / "out", folder / "tmp", list[Process]()
    temporary.mkdir()

    def start() -> Process:
        environment = {**os.environ, "TMPDIR": str(temporary)}
        running.append(subprocess.Popen(words(model, out), env=environment, stderr=subprocess.PIPE, text=True))
        return running[-1]

    return disturbed(start, lambda: bool(scratch(running[-1].pid, temporary)), disturb, out)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.gguf")}


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed")
    assert quantkit(*words(model, out)[3:]).code == 0
    return digests(out)


@pytest.mark.parametrize(
    ("signals", "code"),
    [((signal.SIGTERM,), 143), ((signal.SIGINT,), 130), ((signal.SIGINT,) * 2, 130)],
)
def test_a_signal_leaves_no_temporary_file_and_a_rerun_resumes(
    model: Path, undisturbed: dict[str, str], tmp_path: Path, signals: tuple[int, ...], code: int
) -> None:
    def disturb(running: Process) -> None:
        for number in signals:
            running.send_signal(number)
            time.sleep(0.02)

    process = disturbed_check(model, tmp_path, disturb)
    _, stderr = process.communicate()
    # the second one can come while Python ends, which has restored the default handler
    assert process.returncode == code or (len(signals) > 1 and process.returncode == -signals[-1]), stderr
    assert "Traceback" not in stderr
    assert len(signals) > 1 or "quantkit: interrupted; run the same command again" in stderr
    assert not scratch(process.pid, tmp_path / "tmp")
    again = quantkit(*words(model, tmp_path / "out")[3:])
    assert again.code == 0, again.stderr
    assert digests(tmp_path / "out") == undisturbed


def test_the_death_of_a_child_is_no_failed_check(model: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    def disturb(running: Process) -> None:
        children: list[psutil.Process] = []
        while running.poll() is None and not children:
            with contextlib.suppress(psutil.NoSuchProcess):
                children = psutil.Process(running.pid).children()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()

    process = disturbed_check(model, tmp_path, disturb)
    _, stderr = process.communicate()
    assert process.returncode == 1, stderr
    assert "too little memory" in stderr and "rerun" in stderr
    assert not scratch(process.pid, tmp_path / "tmp")
    assert not list((tmp_path / "out").rglob("*.failed"))
    again = quantkit(*words(model, tmp_path / "out")[3:], "--format", "json")
    assert again.code == 0, again.stderr
    assert digests(tmp_path / "out") == undisturbed


def test_an_interrupt_in_a_destructor_is_not_lost() -> None:
    """Python drops exceptions there, and in callbacks of C code."""
    script = """
import os, signal, sys, time
from unittest.mock import patch
import quantkit.cli
class Freed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
def then():
    Freed()
    time.sleep(60)
with patch("quantkit.cli._require_address_space", then):
    sys.argv = ["quantkit", "inspect", "/nowhere"]
    quantkit.cli.main()
"""
    done = run_process([sys.executable, "-c", script], text=True, timeout=120)
    assert done.returncode == 143, done.stderr
    assert done.stderr == "quantkit: interrupted; run the same command again to resume a conversion or a measurement\n"


@pytest.mark.parametrize(
    "function", ["quantkit.cli._require_address_space", "typer.core._main", "quantkit.cli.load_command"]
)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_around_the_command_itself_has_its_sentence_and_code(function: str, number: int, code: int) -> None:
    """While the arguments are read, or after the command's end."""
    script = f"""
import os, sys
from unittest.mock import patch
import typer.core, quantkit.cli
real = {function}
def then(*arguments, **settings):
    os.kill(os.getpid(), {int(number)})
    return real(*arguments, **settings)
with patch({function!r}, then):
    sys.argv = ["quantkit", "inspect", "/nowhere"]
    quantkit.cli.main()
"""
    done = run_process([sys.executable, "-c", script], text=True)
    assert done.returncode == code, done.stderr
    assert done.stderr == "quantkit: interrupted; run the same command again to resume a conversion or a measurement\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_the_command_with_the_same_sentence(number: int, code: int) -> None:
    """The command is still unwinding after the first one."""
    script = f"""
import os, sys, time
from unittest.mock import patch
import quantkit.cli
def then():
    try:
        os.kill(os.getpid(), {int(number)})
        time.sleep(60)
    finally:
        os.kill(os.getpid(), {int(number)})
        time.sleep(60)
with patch("quantkit.cli._require_address_space", then):
    sys.argv = ["quantkit", "inspect", "/nowhere"]
    quantkit.cli.main()
"""
    done = run_process([sys.executable, "-c", script], text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert done.stderr == "quantkit: interrupted; run the same command again to resume a conversion or a measurement\n"


def test_an_ignored_signal_stays_ignored(model: Path, tmp_path: Path) -> None:
    """nohup ignores SIGHUP before it starts the command."""
    (tmp_path / "tmp").mkdir()
    shell = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *words(model, tmp_path / "out")]
    process = subprocess.Popen(shell, env={**os.environ, "TMPDIR": str(tmp_path / "tmp")}, stderr=subprocess.PIPE)
    while process.poll() is None and not scratch(process.pid, tmp_path / "tmp"):
        time.sleep(0.001)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=120)
    assert process.returncode == 0
