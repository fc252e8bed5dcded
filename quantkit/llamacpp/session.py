"""Child processes that answer questions about GGUF files with llama.cpp (extra `run`).

Every question goes to a child process (child.py): a malformed file may abort llama.cpp, and a child can be timed out.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import quantkit
from quantkit.errors import MissingExtraError, PassingError, QuantkitError
from quantkit.llamacpp.reasons import NO_MEMORY, NO_SPACE, explain
from quantkit.llamacpp.reuse import IdleChildren
from quantkit.system.processes import was_killed
from quantkit.system.python import module_command

Progress = Callable[..., object]

_SECONDS_TO_DIE = 5.0


def require_llama_cpp() -> None:
    """Raises MissingExtraError when neither llama-cpp-python nor xllamacpp is installed."""
    if not any(map(importlib.util.find_spec, ("llama_cpp", "xllamacpp"))):
        raise MissingExtraError("running a GGUF file needs llama.cpp; run: pip install 'quantkit[run]'")


def llama_cpp_version() -> str:
    """The installed llama.cpp as "PACKAGE VERSION", such as "llama-cpp-python 0.3.36"; empty without one."""
    for package in ("llama-cpp-python", "xllamacpp"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{package} {importlib.metadata.version(package)}"
    return ""


class LlamaSession:
    """A child process that answers one request after the other about one file.

    Without a `model`, `answer_about` names the first one. Raises, as `ask` does, MissingExtraError without
    llama-cpp-python and QuantkitError if `model` is not a file.
    """

    def __init__(self, model: Path | None) -> None:
        require_llama_cpp()
        self.model = Path() if model is None else _existing(model)
        self._stack = ExitStack()
        package_root = str(Path(quantkit.__file__).resolve().parents[1])
        # By default OpenMP's threads spin while they wait, which on a busy machine doubles the time.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "GGML_NO_BACKTRACE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self._log = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - closed by the stack
        self._child = subprocess.Popen(
            module_command("quantkit.llamacpp.child"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether the child process is running."""
        return self._child.poll() is None

    def answer_about(self, model: Path) -> None:
        """The next requests are about `model`. Raises QuantkitError, with the child stopped, if it is not a file."""
        try:
            self.model = _existing(model)
            self._log.truncate(0)
            self._log.seek(0)
        except BaseException:
            self.close()
            raise

    def ask(self, request: Mapping[str, Any], *, timeout: float | None = None, progress: Progress | None = None) -> Any:
        """The result of a request, waited for `timeout` seconds at most.

        Raises QuantkitError, naming the file and llama.cpp's reason, if it rejects the request,
        crashes or exceeds `timeout`; then the session is over.
        """
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._child.kill()

        watchdog = threading.Timer(timeout, stop) if timeout else None
        if watchdog:
            watchdog.start()
        try:
            answer = self._converse(request, progress)
        finally:
            if watchdog:
                watchdog.cancel()
        if answer is not None and "result" in answer:
            return answer["result"]
        code = self._end(alive=answer is not None)
        if late.is_set():
            raise QuantkitError(f"{self.model}: llama.cpp did not finish in {timeout:g} seconds and was stopped")
        reason = explain(self.model, answer, self._log)
        if was_killed(code) or NO_MEMORY.search(reason):
            raise PassingError(f"{reason} (too little memory?); the finished work is kept, free some memory and rerun")
        if NO_SPACE.search(reason):
            raise PassingError(f"{reason}; the finished work is kept, free some space in /tmp or /dev/shm and rerun")
        raise QuantkitError(reason)

    def _end(self, *, alive: bool) -> int | None:
        """Stop the child; the code with which one that is not `alive` any more ended by itself."""
        code = None
        if not alive:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._child.wait(_SECONDS_TO_DIE)
        self._child.kill()
        self._child.wait()
        return code

    def _converse(self, request: Mapping[str, Any], progress: Progress | None) -> dict[str, Any] | None:
        """The child's last message on a request; None if it died without one."""
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps(request).encode() + b"\n")
            self._child.stdin.flush()
        except OSError:  # BrokenPipeError; on Windows another one
            return None
        for line in self._child.stdout:
            if not line.endswith(b"\n"):
                return None  # the child died in the middle of it
            message: dict[str, Any] = json.loads(line)
            if "stopped" in message:
                continue
            if "progress" not in message:
                return message
            if progress is not None:
                progress(*message["progress"])
        return None

    def stop(self) -> None:
        """Stop the generation that `ask` waits for; from another thread or a signal handler."""
        assert self._child.stdin is not None
        # write past the buffer, which a handler may have interrupted
        with contextlib.suppress(OSError):
            os.write(self._child.stdin.fileno(), b'{"task": "stop"}\n')

    def close(self) -> None:
        """Stop the child."""
        self._child.kill()
        self._child.communicate()
        self._stack.close()

    def __enter__(self) -> "LlamaSession":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_idle: IdleChildren[LlamaSession] = IdleChildren()


def _existing(model: Path) -> Path:
    if not model.is_file():
        raise QuantkitError(f"{model} is not a file")
    return model


def run_child(
    request: Mapping[str, Any], model: Path, *, timeout: float | None = None, progress: Progress | None = None
) -> Any:
    """Send one request to a child process and return its result; see `LlamaSession.ask` and `children_reused`."""
    session = _idle.take()
    if session is None:
        session = LlamaSession(model)
    else:
        session.answer_about(model)
    try:
        result = session.ask(request, timeout=timeout, progress=progress)
    except BaseException:
        session.close()
        raise
    _idle.give_back(session)
    return result


def children_reused() -> AbstractContextManager[None]:
    """Within this block `run_child` sends several requests to one child; a child that failed is replaced."""
    return _idle.reused()


@contextlib.contextmanager
def children_ready(count: int) -> Iterator[None]:
    """Within this block `run_child` finds `count` children, which load llama.cpp while the caller does other work.

    Without llama.cpp, or where the system gives no process, there are none, and `run_child` says so.
    """
    with children_reused():
        with contextlib.suppress(MissingExtraError, OSError):
            for _ in range(count):
                _idle.give_back(LlamaSession(None))
        yield
