"""Runs of quantkit in which one file operation fails or kills the process, counted by a library under LD_PRELOAD."""

import functools
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from tests.helpers.command import Answer

KILL, STOP, FORK = 0, -1, -2
"""In place of an error number: the process is killed before the call, waits in it for SIGCONT, or forks (faults.c)."""
READS, WRITES = "r", "wsnt"
_STATE = struct.Struct("<QQqq8s480s")
_ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def library() -> Path:
    """tests/helpers/faults.c, compiled; the test is skipped where that is not possible."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("faults are injected on Linux, with a C compiler")
    built = Path(tempfile.gettempdir()) / f"quantkit-tests-faults-{os.getpid()}.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", built, source, "-ldl"], check=True)
    return built


@dataclass(frozen=True)
class Faulty:
    """A run and how many of the operations that count it has made; a killed run has the code -9."""

    answer: Answer
    operations: int


@dataclass(frozen=True)
class ForkedFault:
    """A call that failed in a fork: its number, the process (from 1), what that wrote, its wait status."""

    number: int
    process: int
    text: str
    status: int


@dataclass(frozen=True)
class FaultyRuns:
    """A process that runs `quantkit WORDS...` in forks of its own, with a fault on request."""

    folder: Path
    process: "subprocess.Popen[str]"

    def run(
        self,
        *words: str | Path,
        cwd: Path,
        under: Path | None = None,
        calls: str = "",
        at: int = 0,
        error: int = KILL,
        signal_after: float | None = None,
        signals: Sequence[int] = (signal.SIGKILL,),
        stopped: Callable[[], object] = lambda: None,
    ) -> Faulty:
        """Operation `at` (from 1) of the kinds `calls` on files below `under` meets `error`; 0 counts them only.

        One thread in `words`, so that the same number is the same operation. `signal_after`: seconds until
        `signals`. `stopped` is called while operation `at` waits, if `error` is STOP.
        """
        state = self.folder / "state"
        with state.open("r+b") as file:
            file.write(_STATE.pack(0, at, error, 0, calls.encode(), os.fsencode(under or "/nowhere")))
        stdout, stderr = self.folder / "stdout", self.folder / "stderr"
        streams = {"stdout": str(stdout), "stderr": str(stderr)}
        timed = {"signal_after": signal_after, "signals": list(signals)}
        request = {"words": list(map(str, words)), "cwd": str(cwd), **timed, **streams}
        requests, answers = _pipes(self.process)
        print(json.dumps(request), file=requests, flush=True)
        if at and error == STOP:
            pid = self._wait_for_stop()
            stopped()
            os.kill(pid, signal.SIGCONT)
        answer = answers.readline()
        assert answer, "the process that forks has ended"
        count = _STATE.unpack(state.read_bytes())[0]
        return Faulty(Answer(int(answer), stdout.read_text("utf-8"), stderr.read_text("utf-8")), count)

    def forks(self) -> list[ForkedFault]:
        """The faults of the runs with the error FORK since the last call of this method."""
        log = self.folder / "forks"
        text = log.read_bytes().decode("utf-8", "replace")
        log.write_bytes(b"")
        processes: dict[str, int] = {}
        faults = []
        for part in text.split("\x1e")[1:]:
            head, _, rest = part.partition("\n")
            number, process = head.split()
            written, _, status = rest.rpartition("\x1d")
            place = processes.setdefault(process, len(processes) + 1)
            faults.append(ForkedFault(int(number), place, written, int(status)))
        return faults

    def _wait_for_stop(self) -> int:
        until = time.monotonic() + 300
        while not (pid := _STATE.unpack((self.folder / "state").read_bytes())[3]) or not _is_stopped(pid):
            assert time.monotonic() < until, "the operation does not come"
            time.sleep(0.002)
        return int(pid)


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@contextmanager
def faulty_runs(folder: Path, **environment: str) -> Iterator[FaultyRuns]:
    """Start the process that forks; `folder` is for its own files. Raises nothing but what `library` does."""
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "state"
    state.write_bytes(bytes(_STATE.size))
    (folder / "forks").write_bytes(b"")
    variables = {
        **os.environ,
        "LD_PRELOAD": str(library()),
        "FAULTS_STATE": str(state),
        "FAULTS_FORKS": str(folder / "forks"),
        "COLUMNS": "80",
        "PYTHONPATH": str(_ROOT),
        **environment,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.forks"],
        cwd=_ROOT,
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield FaultyRuns(folder, process)
    finally:
        requests, answers = _pipes(process)
        requests.close()
        process.wait(timeout=30)
        answers.close()


def _pipes(process: "subprocess.Popen[str]") -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout
