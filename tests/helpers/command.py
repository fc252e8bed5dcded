"""The command line as a user starts it: its answer and its exit code, in this process or in one of its own."""

import contextlib
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from unittest.mock import patch

# sets KMP_DUPLICATE_LIB_OK when it is imported, which must not look like a change by a test
import threadpoolctl  # noqa: F401

from quantkit.cli import main
from quantkit.planning.stored_speeds import VARIABLE
from tests.helpers.environment import applies_here, environment
from tests.helpers.forked import run_process

_COLUMNS = "80"
_PYTEST = "PYTEST_"
_DEFAULT_IGNORED = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)


@dataclass(frozen=True)
class Answer:
    code: int
    stdout: str
    stderr: str

    @property
    def sentence(self) -> str:
        """The one line of an error; asserts that it is one and that no traceback came with it."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("quantkit: ")]
        assert len(lines) == 1, self.stderr
        assert "Traceback" not in self.stderr
        return lines[0]


def current_environment() -> dict[str, str]:
    """The environment without pytest's own variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_PYTEST)}


# no test takes or keeps speeds of the user's devices; tests/planning/test_stored_speeds.py has a file
os.environ[VARIABLE] = ""
_AT_START = current_environment()


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "quantkit", *map(str, words)]


def quantkit(
    *words: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: int | None = None
) -> Answer:
    """Run `quantkit WORDS...` without a terminal: in this process, or in another one where a test needs it.

    Another process is needed for a timeout and for another environment, which libraries read when they are imported:
    one that the test has changed by monkeypatch, or one of `env` with other variables than those of the hub's client
    and of Ollama.
    """
    changed = {name for name, _ in current_environment().items() ^ _AT_START.items()}
    if timeout or changed - {"QUANTKIT_FAMILIES"} or not applies_here(env or {}):
        return quantkit_forked(*words, cwd=cwd, env=env, timeout=timeout or 240)
    with environment(env) if env else contextlib.nullcontext():
        return quantkit_here(*words, cwd=cwd)


def quantkit_process(
    *words: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: int = 240
) -> Answer:
    """Run `quantkit WORDS...` without a terminal, in a new process: for tests of memory, signals and imports."""
    done = subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": _COLUMNS, **(env or {})},
        timeout=timeout,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def quantkit_forked(
    *words: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: int = 240
) -> Answer:
    """As `quantkit_process`, in a fork of an interpreter that has imported quantkit where that is the same."""
    variables = {**os.environ, "COLUMNS": _COLUMNS, **(env or {})}
    done = run_process(command(*words), cwd=cwd, env=variables, timeout=timeout, text=True)
    return Answer(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def working_folder(folder: Path) -> Iterator[None]:
    """`folder` as the current one; contextlib.chdir, which Python 3.10 lacks."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def quantkit_here(*words: str | Path, cwd: Path | None = None) -> Answer:
    """The function that the `quantkit` script calls, with the process's arguments, folder and streams set for it.

    Streams are replaced as file descriptors, so the output of child processes is captured too.
    """
    argv, columns = sys.argv, os.environ.get("COLUMNS")
    code: Any = 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(_default_warnings())
        stdout = stack.enter_context(_captured(1, "stdout", "strict"))
        stderr = stack.enter_context(_captured(2, "stderr", "backslashreplace"))
        # pytest's own stdin refuses to be read, but that of its workers does not
        stack.enter_context(patch.object(sys, "stdin", stack.enter_context(Path(os.devnull).open())))
        if cwd is not None:
            stack.enter_context(working_folder(cwd))
        try:
            sys.argv = ["quantkit", *map(str, words)]
            os.environ["COLUMNS"] = _COLUMNS
            main()
        except SystemExit as end:
            code = end.code
        finally:
            sys.argv = argv
            if columns is None:
                del os.environ["COLUMNS"]
            else:
                os.environ["COLUMNS"] = columns
    if code == 130:  # main() has explained a Ctrl-C that was meant for pytest
        raise KeyboardInterrupt
    return Answer(code or 0, _text(stdout), _text(stderr))


@contextlib.contextmanager
def _captured(descriptor: int, name: str, errors: str) -> Iterator[IO[bytes]]:
    """File descriptor 1 or 2, and the stream of sys over it, written to a file, as a shell redirects them."""
    before = getattr(sys, name)
    before.flush()
    file = tempfile.TemporaryFile()  # noqa: SIM115
    saved = os.dup(descriptor)
    os.dup2(file.fileno(), descriptor)
    stream = open(descriptor, "w", encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
    setattr(sys, name, stream)
    try:
        yield file
    finally:
        setattr(sys, name, before)
        stream.flush()
        os.dup2(saved, descriptor)
        os.close(saved)


def _text(file: IO[bytes]) -> str:
    """The text of `file`, its line ends as subprocess reads them; closes it."""
    with file:
        file.seek(0)
        return file.read().decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


@contextlib.contextmanager
def _default_warnings() -> Iterator[None]:
    """Warnings as Python shows them in a process of its own: pytest would keep them from stderr."""
    with warnings.catch_warnings():
        warnings.resetwarnings()
        for category in _DEFAULT_IGNORED:
            warnings.simplefilter("ignore", category)
        warnings.showwarning = _show_warning
        yield


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    (file or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))


def assert_nothing_final(folder: Path) -> None:
    """No GGUF file is below a folder of outputs, and nothing of a partial one."""
    assert not [path for path in folder.rglob("*") if path.suffix == ".gguf"]
    assert not list(folder.rglob("*.partial"))
