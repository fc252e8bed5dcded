"""One quantkit command in a process of its own: its document, its time, its peak memory, its one sentence of error."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError, UsageError, VerificationError

_MARK, _WARNING = "quantkit: ", "warning: "
_PR_SET_PDEATHSIG = 1
_SECONDS_TO_END = 10.0
_ERRORS: dict[int, type[QuantkitError]] = {2: UsageError, 3: VerificationError}


@dataclass(frozen=True)
class Messages:
    """Receivers of what a command prints while it works: `note` gets each line, `warn` each warning."""

    note: Callable[[str], object] = lambda text: None
    warn: Callable[[str], object] = lambda text: None


@dataclass(frozen=True)
class Finished:
    """A command that went well. `peak_memory`: the largest resident set of it or a child of its, in bytes."""

    document: dict[str, Any]
    seconds: float
    peak_memory: int


@dataclass(frozen=True)
class Ended:
    """A command that ended, well or not: its exit code (minus a signal), what it printed, its sentences of error."""

    code: int
    answer: str
    sentences: tuple[str, ...]
    seconds: float
    peak_memory: int


def run_command(words: Sequence[str], messages: Messages) -> Finished:
    """Run `quantkit WORDS... --format json` and wait for it. It dies with this process, however that ends.

    Raises:
        QuantkitError: it failed; with its own sentence, as the class of its exit code.
        KeyboardInterrupt: it was interrupted.
    """
    ended = run_process(words, messages)
    if ended.code:
        raise failure(words[0], ended.code, ended.sentences)
    return Finished(json.loads(ended.answer), ended.seconds, ended.peak_memory)


def run_process(words: Sequence[str], messages: Messages, folder: Path | None = None) -> Ended:
    """The same for who wants its answer in any case; in `folder`, if it is given."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "quantkit", *words, "--format", "json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        cwd=folder,
        preexec_fn=_dying_with(os.getpid()),
    )
    sentences: list[str] = []
    listener = threading.Thread(target=_listen, args=(process, messages, sentences), daemon=True)
    listener.start()
    try:
        assert process.stdout is not None
        answer = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        # it gets the time to remove what it has in folders of temporary files
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_SECONDS_TO_END)
        process.kill()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    listener.join(timeout=10)
    unit = 1 if sys.platform == "darwin" else 1024
    return Ended(process.returncode, answer, tuple(sentences), time.monotonic() - started, usage.ru_maxrss * unit)


def failure(command: str, code: int, sentences: Sequence[str]) -> BaseException:
    """What a command's exit code other than 0 means, with its last sentence."""
    if code in (128 + signal.SIGINT, -signal.SIGINT):
        return KeyboardInterrupt()
    if code < 0:
        why = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        return QuantkitError(
            f"quantkit {command} was killed by signal {-code}{why}; the same bake goes on where it was"
        )
    return _ERRORS.get(code, QuantkitError)(
        sentences[-1] if sentences else f"quantkit {command} failed with exit code {code} and said nothing"
    )


def _listen(process: "subprocess.Popen[str]", messages: Messages, sentences: list[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        text = line.rstrip()
        if text.startswith(_MARK):
            sentences.append(text.removeprefix(_MARK))
        elif text.startswith(_WARNING):
            messages.warn(text.removeprefix(_WARNING))
        elif text:
            messages.note(text)


def _dying_with(parent: int) -> Callable[[], None] | None:
    """What a child does first so that the kernel ends it with its parent (Linux): prctl(PR_SET_PDEATHSIG)."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it went away in between
            os._exit(1)

    return prepare
