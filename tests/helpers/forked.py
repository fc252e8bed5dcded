"""Processes forked from an interpreter that has imported quantkit, which saves the second that each start takes.

`Forked` is a `subprocess.Popen` of `python -m MODULE ...` or `python -c CODE ...`: the process has its own arguments,
environment, folder, streams, signals and exit code. What it imports, and the memory it takes, is not that of a
process that a user starts. Commands are forked from one interpreter; one with other modules serves those who name them.
As a script: such an interpreter, which imports the modules that are its arguments, or all commands. It reads requests
from a socket, its stdin.
"""

import array
import atexit
import contextlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import IO, Any

_LONGEST_REQUEST = 1 << 20
_READ_AT_START = ("OMP_", "OPENBLAS_", "GGML_", "LD_", "LANG", "LC_", "MALLOC_", "PYTHON", "MPL", "TOKENIZERS_")
"""Variables that a library or Python reads when it is loaded: another value needs a process of its own."""
LLAMA_CHILD = ("quantkit.llamacpp.calls", "quantkit.llamacpp.embedding", "quantkit.llamacpp.inputs")
LLAMA_CHILD += ("quantkit.llamacpp.loading", "quantkit.llamacpp.generation", "quantkit.system.descriptors")
"""What the process of llama.cpp imports."""


class Forked(subprocess.Popen[Any]):
    """A process of the fork server; see the module. Only these options of Popen apply: cwd, env, streams, text.

    `modules`: those of the interpreter that forks, in place of the commands.
    """

    def __init__(self, words: Sequence[str | Path], *, modules: tuple[str, ...] = (), **options: Any) -> None:
        self._modules = modules
        super().__init__(words, **options)

    def _execute_child(self, args: Sequence[str | Path], *options: Any, **_: Any) -> None:
        """Popen's own method starts a process. `options`: executable ... cwd, env ... and the ends of three pipes."""
        cwd, environment = options[4], options[5]
        to_child, from_child, errors = options[9:11], options[11:13], options[13:15]
        streams = (to_child[0], from_child[1], errors[1])
        reading, writing = os.pipe()
        words = [os.fspath(word) for word in args]
        request = {"words": words[1:], "cwd": os.fspath(cwd or Path.cwd()), "env": dict(environment or os.environ)}
        try:
            descriptors = [stream if stream >= 0 else number for number, stream in enumerate(streams)]
            self.pid = _server(self._modules, request["env"]).fork(request, [*descriptors, writing])
        finally:
            os.close(writing)
            self._close_pipe_fds(*to_child, *from_child, *errors)  # type: ignore[attr-defined]
        self._status = os.fdopen(reading, "rb", buffering=0)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self._read_status()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self._read_status()
        return self.returncode

    def _read_status(self) -> None:
        with self._status:
            (self.returncode,) = struct.unpack("i", self._status.read(4))


def start_process(
    words: Sequence[str | Path], *, modules: tuple[str, ...] = (), **options: Any
) -> "subprocess.Popen[Any]":
    """A process of Python with Popen's `options`: a fork, or a new one where a fork would not be the same."""
    if forks(options.get("env"), modules):
        return Forked(words, modules=modules, **options)
    return subprocess.Popen(words, **options)


def run_process(
    words: Sequence[str | Path], *, timeout: float | None = None, input: Any = None, **options: Any
) -> "subprocess.CompletedProcess[Any]":
    """As subprocess.run, with the output captured; see `start_process`."""
    stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
    with start_process(words, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        try:
            stdout, stderr = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)


def forks(environment: Mapping[str, str] | None = None, modules: tuple[str, ...] = ()) -> bool:
    """Whether this system forks, and a fork takes this environment as a new process does."""
    if os.name == "nt" or sys.platform == "darwin":
        return False
    environment = dict(environment or os.environ)
    server = _server(modules, environment)
    # a fork of this process has the same socket
    return server.owner == os.getpid() and _read_at_start(server.environment) == _read_at_start(environment)


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_READ_AT_START)}


_AT_START = dict(os.environ)


class _Server:
    """An interpreter that forks."""

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self.environment, self.owner, self._lock = environment, os.getpid(), threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LONGEST_REQUEST)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.helpers.forked", *modules],
                env=environment,
                cwd=Path(__file__).resolve().parents[2],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
            )

    def fork(self, request: dict[str, Any], descriptors: Sequence[int]) -> int:
        """The number of the new process; it has three streams, and the fourth descriptor tells its exit code."""
        packed = array.array("i", descriptors)
        message = json.dumps(request).encode()
        with self._lock:
            self._socket.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)])
            (pid,) = struct.unpack("i", self._socket.recv(4))
        return int(pid)

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


_servers: dict[tuple[Any, ...], _Server] = {}


def _server(modules: tuple[str, ...], environment: Mapping[str, str]) -> _Server:
    """The interpreter with these modules. That of the commands starts as this process did, and others as they are
    asked to.
    """
    key = (modules, *sorted(_read_at_start(environment).items())) if modules else ()
    if key not in _servers:
        _servers[key] = _Server(modules, environment if modules else _AT_START)
    return _servers[key]


@atexit.register
def close() -> None:
    """End the interpreters; processes that they have forked go on."""
    while _servers:
        _servers.popitem()[1].close()


def _serve() -> dict[str, Any]:
    """Answer requests; returns in each fork, with its request."""
    requests = socket.socket(fileno=os.dup(0))
    ended, wake = os.pipe()
    os.set_blocking(ended, False)
    os.set_blocking(wake, False)
    server, usual = os.getpid(), signal.signal(signal.SIGCHLD, lambda *_: None)

    def interrupt(number: int, frame: FrameType | None) -> None:
        # Ctrl-C reaches every process of the terminal; this one still has to tell how the others end
        if os.getpid() != server:
            signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    running: dict[int, tuple[int, IO[bytes]]] = {}
    while True:
        ready, _, _ = select.select([requests, ended], [], [])
        if ended in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(ended, 512)
            _reap(running)
        if requests not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(requests, _LONGEST_REQUEST, 4)
        if not message:
            os._exit(0)
        *streams, status = descriptors
        modules = tempfile.TemporaryFile()  # noqa: SIM115
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, usual)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            for descriptor in (*descriptors, ended, wake, *(end for end, _ in running.values())):
                os.close(descriptor)
            requests.close()
            return {**json.loads(message), "modules": modules}
        for stream in streams:
            os.close(stream)
        running[pid] = (status, modules)
        requests.send(struct.pack("i", pid))


def _reap(running: dict[int, tuple[int, IO[bytes]]]) -> None:
    """Tell the exit codes of the processes that have ended, and import what they have imported, for the next ones."""
    for pid in list(running):
        ended, state = os.waitpid(pid, os.WNOHANG)
        if not ended:
            continue
        status, modules = running.pop(pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(status, struct.pack("i", os.waitstatus_to_exitcode(state)))
        os.close(status)
        with modules:
            modules.seek(0)
            _import(modules.read().decode().split())


def _import(names: Iterable[str]) -> None:
    for name in names:
        if name not in sys.modules and "__main__" not in name:
            with contextlib.suppress(ImportError):
                import_module(name)


def _become(request: dict[str, Any]) -> int:
    """Be the process that was asked for; its exit code."""
    from tests.helpers.environment import use_hub_variables

    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    tempfile.tempdir = None
    # as in the test's process: no file outlives the machine
    os.fsync = os.fdatasync = lambda descriptor: None
    use_hub_variables()
    how, what, *words = (word for word in request["words"] if word != "-P")
    sys.argv = [how, *words]
    try:
        if how == "-c":
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_module(what, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end(code: int, modules: IO[bytes]) -> None:
    """End as the interpreter does."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            code = 120
            with contextlib.suppress(OSError):
                os.write(2, f"{error}\n".encode())
    os.write(modules.fileno(), "\n".join(sys.modules).encode())
    os._exit(code)


def _prepare(modules: Sequence[str]) -> None:
    """Import the modules, or all commands. The children of llama.cpp have one thread by default, as in the test's own
    process.
    """
    _import(modules)
    if modules:
        from quantkit.system import processor

        processor.usable_processors = lambda: 1
    else:
        from quantkit.cli import COMMANDS, load_command
        from tests.helpers.token_memory import remembered_tokens

        contextlib.ExitStack().enter_context(remembered_tokens())
        for command in COMMANDS:
            load_command(command)


if __name__ == "__main__":
    _prepare(sys.argv[1:])
    asked = _serve()
    _end(_become(asked), asked["modules"])
