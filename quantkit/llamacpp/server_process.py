"""A server in a child process: started, waited for, watched, and gone when this process is gone."""

import contextlib
import ctypes
import http.client
import ipaddress
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from types import TracebackType

from quantkit.errors import QuantkitError, UsageError
from quantkit.llamacpp.reasons import telling_line
from quantkit.llamacpp.server import ServerCommand

_LINES_KEPT = 200
_POLL_SECONDS = 0.1
_SECONDS_TO_STOP = 5.0
_DIE_WITH_PARENT = 1
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
# time and level that llama-server writes before a line
_DRAFTS = re.compile(r"draft acceptance.*?(\d+) accepted / +(\d+) generated")
_LOG_PREFIX = re.compile(r"^[\d.]+ [A-Z] ")


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach a server at `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_port_is_free(host: str, port: int) -> None:
    """Raise UsageError if a server cannot listen at `host` and `port`: the port is in use, or the host is unknown."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise UsageError(
            f"--host {host} is not an address of this machine ({error.strerror}); pass 127.0.0.1 or 0.0.0.0"
        ) from error
    with socket.socket(family, kind) as probe:
        # as servers do: a port whose last connections are still closing is free
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            # an address that is bound by a server with the same option is in use only for listening
            probe.listen(1)
        except PermissionError as error:
            raise UsageError(f"port {port} needs the rights of root; choose a --port above 1023") from error
        except OSError as error:
            if error.errno == 98 or "in use" in str(error):
                raise UsageError(
                    f"port {port} of {host} is in use; stop the server that uses it, or choose another --port"
                ) from error
            raise UsageError(
                f"--host {host} is not an address of this machine ({error.strerror}); pass 127.0.0.1 or 0.0.0.0"
            ) from error


class ServerProcess:
    """A server in a child process, ended with the `with` block. `drafts`: tokens accepted, and drafted, so far.

    Raises QuantkitError if the program cannot be started.
    """

    def __init__(self, command: ServerCommand, host: str, port: int) -> None:
        self._host, self._port = _ANY_ADDRESS.get(host, host), port
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self.drafts = (0, 0)
        try:
            # Ctrl-C at a terminal reaches this process only, which then ends the child
            self._child = subprocess.Popen(
                command.words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=command.environment,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        except OSError as error:
            raise QuantkitError(f"{command.words[0]} could not be started: {error.strerror}") from error
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(command.stdin.encode())
            self._child.stdin.flush()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    def wait_until_ready(self) -> None:
        """Wait until the model is loaded and the server answers. Raises QuantkitError if the child ends before."""
        while self._get("/health") != 200:
            if self._child.poll() is not None:
                raise QuantkitError(self._end("could not start"))
            time.sleep(_POLL_SECONDS)

    def has_page(self) -> bool:
        """Whether the server has a web page."""
        return self._get("/") == 200

    def wait(self) -> None:
        """Wait for the end of the child, which is an error: raises QuantkitError with the reason."""
        self._child.wait()
        raise QuantkitError(self._end("stopped"))

    def stop(self) -> None:
        """End the child: ask it to finish, and kill it after five seconds."""
        if self._child.poll() is None:
            self._child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(_SECONDS_TO_STOP)
        self._child.kill()
        self._child.wait()

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        self._reader.join(_SECONDS_TO_STOP)
        assert self._child.stdin is not None and self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        self._child.stdout.close()

    def _get(self, path: str) -> int:
        """The status of a request; 0 without an answer."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_SECONDS_TO_STOP)
        try:
            # llama-server keeps its page compressed
            connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def _read(self) -> None:
        """Read what the child writes, so that it never waits; the last lines are kept."""
        assert self._child.stdout is not None
        for line in self._child.stdout:
            text = _LOG_PREFIX.sub("", line.decode("utf-8", "replace").strip())
            self._lines.append(text)
            if match := _DRAFTS.search(text):
                self.drafts = (self.drafts[0] + int(match[1]), self.drafts[1] + int(match[2]))

    def _end(self, event: str) -> str:
        self._reader.join(_SECONDS_TO_STOP)
        code = self._child.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        reason = telling_line([line for line in self._lines if line])
        return f"the server {event} ({how})" + (f": {reason}" if reason else "")


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """In the child, before it runs: end it if this process is killed."""
    assert _libc is not None
    _libc.prctl(_DIE_WITH_PARENT, signal.SIGTERM, 0, 0, 0)
