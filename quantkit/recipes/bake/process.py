"""Run one quantkit command in a separate process: its JSON document, time, peak memory, and error sentence."""

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError, UsageError, VerificationError
from quantkit.progress import SILENT, Progress
from quantkit.system.processes import dies_with_this_process, ends_at_once, wait, was_interrupted, was_killed
from quantkit.system.python import module_command

_MARK, _WARNING = "quantkit: ", "warning: "
_SECONDS_TO_END = 10.0
_ERRORS: dict[int, type[QuantkitError]] = {2: UsageError, 3: VerificationError}


@dataclass(frozen=True)
class Finished:
    """A command that succeeded. `peak_memory`: the largest resident set of the command or of a child, in bytes."""

    document: dict[str, Any]
    seconds: float
    peak_memory: int


@dataclass(frozen=True)
class Ended:
    """A command that succeeded or failed.

    Attributes:
        code: the exit code, or the negative number of the signal that killed it.
        answer: its stdout.
        sentences: its error sentences.
        seconds, peak_memory: as in `Finished`.
    """

    code: int
    answer: str
    sentences: tuple[str, ...]
    seconds: float
    peak_memory: int


def run_command(
    words: Sequence[str], progress: Progress = SILENT, warn: Callable[[str], object] = lambda text: None
) -> Finished:
    """Run `quantkit WORDS... --format json` and wait for it. The command dies with this process.

    Args:
        progress: receives each line that the command prints on stderr, as the item of a step of 0.
        warn: receives each warning.

    Raises:
        QuantkitError: the command failed; with its own sentence, in the class of its exit code.
        KeyboardInterrupt: the command was interrupted.
    """
    ended = run_process(words, progress, warn)
    if ended.code:
        raise failure(words[0], ended.code, ended.sentences)
    return Finished(json.loads(ended.answer), ended.seconds, ended.peak_memory)


def run_process(
    words: Sequence[str],
    progress: Progress = SILENT,
    warn: Callable[[str], object] = lambda text: None,
    folder: Path | None = None,
) -> Ended:
    """Run the command as `run_command`, in `folder` if it is given; a failure is returned, not raised."""
    started = time.monotonic()
    process = subprocess.Popen(
        [*module_command("quantkit"), *words, "--format", "json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        cwd=folder,
        **dies_with_this_process(),
    )
    sentences: list[str] = []
    listener = threading.Thread(target=_listen, args=(process, progress, warn, sentences), daemon=True)
    listener.start()
    with ends_at_once(process):
        try:
            assert process.stdout is not None
            answer = process.stdout.read()
            code, peak_memory = wait(process)
        except BaseException:
            # the command needs time to remove its temporary folders
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_SECONDS_TO_END)
            process.kill()
            process.wait()
            raise
    listener.join(timeout=10)
    return Ended(code, answer, tuple(sentences), time.monotonic() - started, peak_memory)


def failure(command: str, code: int, sentences: Sequence[str]) -> BaseException:
    """The error for an exit code other than 0, with the last sentence of the command."""
    if was_interrupted(code):
        return KeyboardInterrupt()
    if code < 0:
        why = ", possibly because memory ran out" if was_killed(code) else ""
        return QuantkitError(f"quantkit {command} was killed by signal {-code}{why}; run the same bake again to resume")
    return _ERRORS.get(code, QuantkitError)(
        sentences[-1]
        if sentences
        else f"quantkit {command} failed with exit code {code} without a message; run it by itself with --debug"
    )


def _listen(
    process: "subprocess.Popen[str]", progress: Progress, warn: Callable[[str], object], sentences: list[str]
) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        text = line.rstrip()
        if text.startswith(_MARK):
            sentences.append(text.removeprefix(_MARK))
        elif text.startswith(_WARNING):
            warn(text.removeprefix(_WARNING))
        elif text:
            progress.advance(0, text)
