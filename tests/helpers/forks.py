"""Runs quantkit in forks of one process that has imported it, which saves the second that each start takes.

`python -m tests.helpers.forks` reads requests from stdin, lines of JSON, and answers each by a line with the exit code.
"""

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module

from quantkit.cli import COMMANDS, load_command, main


def _run(words: list[str], cwd: str, stdout: str, stderr: str, kill_after: float | None) -> int:
    """The exit code of `quantkit WORDS...` in a fork; of a signal, its negative number. Waits for its children too.

    The fork gets SIGKILL after `kill_after` seconds.
    """
    modules = tempfile.TemporaryFile()  # noqa: SIM115
    pid = os.fork()
    if pid == 0:
        os.setsid()
        for number, path in ((0, os.devnull), (1, stdout), (2, stderr)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.chdir(cwd)
        sys.argv = ["quantkit", *words]
        code = 70
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1 if end.code else 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            if code == 0:
                os.write(modules.fileno(), "\n".join(sys.modules).encode())
            os._exit(code)
    killer = threading.Timer(kill_after or 0, os.kill, (pid, signal.SIGKILL))
    if kill_after is not None:
        killer.start()
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    killer.cancel()
    if kill_after is not None:
        killer.join()
    _, status = os.waitpid(pid, 0)
    _wait_for_group(pid)
    with modules:
        modules.seek(0)
        _import(modules.read().decode().split())
    return os.waitstatus_to_exitcode(status)


def _import(names: Iterable[str]) -> None:
    """Import what a run has imported, so that the next ones have it already."""
    for name in names:
        if name not in sys.modules and "__main__" not in name:
            with suppress(ImportError):
                import_module(name)


def _wait_for_group(pid: int, seconds: float = 20.0) -> None:
    """Children of a killed process end by themselves; one that does not is an error."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.005)
    raise TimeoutError(f"a child of process {pid} still runs after {seconds:.0f} s")


if __name__ == "__main__":
    for command in COMMANDS:
        load_command(command)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        print(_run(**json.loads(line)), file=answers, flush=True)
