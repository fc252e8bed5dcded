"""Runs quantkit in forks of one process that has imported it, which saves the second that each start takes.

`python -m tests.helpers.forks` reads requests from stdin, lines of JSON, and answers each by a line with the exit code.
"""

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib import import_module

from quantkit.cli import COMMANDS, load_command, main


def _run(
    words: list[str], cwd: str, stdout: str, stderr: str, signal_after: float | None, signals: Sequence[int]
) -> int:
    """The exit code of `quantkit WORDS...` in a fork; of a signal, its negative number. Waits for its children too.

    The fork gets `signals`, 20 ms apart, after `signal_after` seconds.
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
    sender = threading.Timer(signal_after or 0, _send, (pid, signals))
    if signal_after is not None:
        sender.start()
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    sender.cancel()
    if signal_after is not None:
        sender.join()
    _, status = os.waitpid(pid, 0)
    _wait_for_group(pid)
    with modules:
        modules.seek(0)
        _import(modules.read().decode().split())
    return os.waitstatus_to_exitcode(status)


def _send(pid: int, signals: Sequence[int]) -> None:
    """Send the signals to a process that may have ended; it is not waited for yet, so that its number is its own."""
    for number in signals:
        os.kill(pid, number)
        time.sleep(0.02)


def _import(names: Iterable[str]) -> None:
    """Import what a run has imported, so that the next ones have it already."""
    for name in names:
        if name not in sys.modules and "__main__" not in name:
            with suppress(ImportError):
                import_module(name)


def _wait_for_group(pid: int, seconds: float = 60.0) -> None:
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
