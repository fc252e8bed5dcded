"""Child processes and limits of this one: how each system ends, kills and limits a process."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from quantkit.system import memory, optional_module

_PR_SET_PDEATHSIG = 1
_CONTROL_C_EXIT = 0xC000013A
"""The exit code of a Windows process that Ctrl-C ended."""
_WATCHED_SECONDS = 0.05
_children: "set[subprocess.Popen[Any]]" = set()


def dies_with_this_process() -> dict[str, Any]:
    """Options of subprocess.Popen for a child that the system kills with its parent: Linux, PR_SET_PDEATHSIG.

    Elsewhere such a child ends when it next writes to its parent.
    """
    if not sys.platform.startswith("linux"):
        return {}
    libc, parent = ctypes.CDLL(None, use_errno=True), os.getpid()

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before prctl
            os._exit(1)

    return {"preexec_fn": prepare}


@contextlib.contextmanager
def ends_at_once(process: "subprocess.Popen[Any]") -> Iterator[None]:
    """For the time of a `with` statement, `end_children` ends the process too."""
    _children.add(process)
    try:
        yield
    finally:
        _children.discard(process)


def end_children(seconds: float = 2.0) -> None:
    """End the processes of `ends_at_once`: SIGTERM, a second one after half of `seconds`, then SIGKILL.

    A command removes its temporary folders at the first one, or at once at the second one. A signal's handler may call
    this: it waits for no lock, and leaves the exit codes to their owner.
    """
    start, sent = time.monotonic(), 0
    while (running := [process for process in list(_children) if _runs(process.pid)]) and sent < 3:
        if time.monotonic() >= start + sent * seconds / 2:
            number = signal.SIGTERM if sent < 2 or os.name == "nt" else signal.SIGKILL
            for process in running:
                with contextlib.suppress(OSError):
                    os.kill(process.pid, number)
            sent += 1
        time.sleep(_WATCHED_SECONDS / 5)


def _runs(pid: int) -> bool:
    """Whether a child has not ended yet."""
    if not hasattr(os, "waitid"):
        return True
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


def wait(process: "subprocess.Popen[Any]") -> tuple[int, int]:
    """The exit code of a child, as Popen's, and its largest resident set, or one of its children's, in bytes.

    Windows gives that of the child alone. 0 stands for an unknown size.
    """
    if hasattr(os, "wait4"):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, usage.ru_maxrss * memory.resident_unit()
    code = process.wait()
    handle = getattr(process, "_handle", None)
    counters = memory.counters_of_handle(int(handle)) if handle is not None else None
    return code, counters.peak_working_set if counters is not None else 0


def has_ended(pid: int) -> bool:
    """Whether no process of this system, or this container, has the number; False where that cannot be asked."""
    if os.name == "nt":  # os.kill would end the process there
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def was_interrupted(code: int) -> bool:
    """Whether an exit code of Popen is that of Ctrl-C."""
    return code in (128 + signal.SIGINT, -signal.SIGINT, _CONTROL_C_EXIT, _CONTROL_C_EXIT - (1 << 32))


def was_killed(code: int | None) -> bool:
    """Whether an exit code of Popen is that of SIGKILL, which Linux sends when memory runs out."""
    return code is not None and code == -getattr(signal, "SIGKILL", 0) != 0


def limit_this_process(seconds: int, size: int) -> None:
    """Limit this process to so many seconds of processor time and `size` bytes of memory; beyond them it ends.

    Linux limits the address space. Elsewhere a thread looks at both every 50 ms: macOS does not enforce the limit of
    the address space, and Windows has none.
    """
    resource = optional_module("resource")
    if resource is not None and sys.platform.startswith("linux"):
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        return
    if resource is not None:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    threading.Thread(target=_end_beyond, args=(seconds, size, os._exit), daemon=True).start()


def _end_beyond(seconds: float, size: int, end: Callable[[int], object]) -> None:
    while time.process_time() < seconds and (memory.resident() or 0) < size:
        time.sleep(_WATCHED_SECONDS)
    end(1)
