"""A command as a separate process, and the kernel's counts of its time, memory and bytes."""

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic


@dataclass(frozen=True)
class Measured:
    """Wall and CPU seconds; bytes given to write calls; peak resident bytes of the process or of a child it waited for.

    The peak starts from what this process holds when it starts the command, so a benchmark must stay small itself.
    """

    seconds: float
    cpu_seconds: float
    written: int
    peak_memory: int
    stdout: str


def measure(
    command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, folder: Path | None = None
) -> Measured:
    """Run `command` to its end, in `folder` if one is given; raises RuntimeError with its last words if it fails.

    Both sides run as installed programs do: Python keeps the bytecode that it compiles.
    """
    variables = {name: value for name, value in (env or os.environ).items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = monotonic()
        child = subprocess.Popen([str(word) for word in command], stdout=out, stderr=err, env=variables, cwd=folder)
        # The process stays a zombie until wait4, and its counters can still be read.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        seconds = monotonic() - started
        written = _written(child.pid)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        stdout = out.read().decode(errors="replace")
        if child.returncode != 0:
            errors = err.read().decode(errors="replace")
            raise RuntimeError(
                f"{' '.join(map(str, command))} exits {child.returncode}:\n{stdout[-2000:]}\n{errors[-2000:]}"
            )
    return Measured(seconds, usage.ru_utime + usage.ru_stime, written, usage.ru_maxrss * 1024, stdout)


def _written(pid: int) -> int:
    counters = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(counters["wchar"])


def warm(folder: Path) -> None:
    """Read every file of `folder`, so that whoever comes first finds them in memory too."""
    for path in sorted(folder.iterdir()):
        with path.open("rb", buffering=0) as file:
            while file.read(8 << 20):
                pass
