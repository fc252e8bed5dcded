"""llama.cpp's RPC backend and its server, compiled from the llama-cpp-python sdist for the installed libllama.

A server on this machine is a device to llama.cpp, so that layers can be offloaded where there is no GPU. The backend is
a shared library that ggml loads at run time, as its GGML_BACKEND_DL builds do: ten seconds instead of a second
llama.cpp. Everything lands under .cache/rpc on first use.
"""

import fcntl
import hashlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.llama_tools import SOURCE, libraries
from tests.helpers.packages import CACHE, fetch_sdist_parts
from tests.helpers.ports import free_port

_TREE = "vendor/llama.cpp/"
_PARTS = (
    "ggml/include/",
    "ggml/src/ggml-backend-impl.h",
    "ggml/src/ggml-impl.h",
    "ggml/src/ggml-rpc/",
    "tools/rpc/",
)
_BACKEND_OPTIONS = ("-shared", "-fPIC", "-DGGML_BACKEND_DL", "-DGGML_BACKEND_BUILD", "-DGGML_BACKEND_SHARED")
_BACKEND_FILES = ("ggml/src/ggml-rpc/ggml-rpc.cpp", "ggml/src/ggml-rpc/transport.cpp")


@dataclass(frozen=True)
class Rpc:
    """The backend's shared library, for GGML_BACKEND_PATH, and the server's program."""

    backend: Path
    program: Path

    @contextmanager
    def serving(self, threads: int = 2, *, spinning: bool = False, log: Path | None = None) -> Iterator[str]:
        """A server of this machine's CPU as long as it is needed; gives its host:port.

        `spinning`: its threads do not sleep between operations, which is faster if the cores have nothing else to do.
        `log`: a file for its account of each message.
        """
        port = free_port()
        command = [str(self.program), "--host", "127.0.0.1", "--port", str(port), "--threads", str(threads)]
        environment = {"GGML_BACKEND_PATH": str(self.backend), "OMP_WAIT_POLICY": "ACTIVE" if spinning else "PASSIVE"}
        if log:
            environment["GGML_RPC_DEBUG"] = "1"
        with (log or Path(os.devnull)).open("wb") as out:
            server = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        try:
            _wait(server, port)
            yield f"127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait()


def rpc() -> Rpc:
    """Both, compiled on first use."""
    tree = fetch_sdist_parts(*SOURCE, "rpc", tuple(_TREE + part for part in _PARTS)) / _TREE
    installed = libraries()
    folder = CACHE.parent / "rpc" / hashlib.sha256(str(installed).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    made = Rpc(folder / "libggml-rpc.so", folder / "rpc-server")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        backend = [str(tree / file) for file in _BACKEND_FILES]
        _compile(tree, installed, [*_BACKEND_OPTIONS, "-DGGML_SHARED", *backend], ("ggml-base",), made.backend)
        server = [str(tree / "tools/rpc/rpc-server.cpp"), "-pthread"]
        _compile(tree, installed, server, ("ggml", "ggml-base", "ggml-cpu"), made.program)
    return made


def _compile(tree: Path, installed: Path, what: list[str], links: tuple[str, ...], out: Path) -> None:
    if out.exists():
        return
    partial = out.with_name(f"{out.name}.partial")
    include = [f"-I{tree / 'ggml/include'}", f"-I{tree / 'ggml/src'}"]
    link = [f"-L{installed}", *(f"-l{name}" for name in links), f"-Wl,-rpath,{installed}"]
    command = ["c++", "-O1", "-std=c++17", *include, *what, *link, "-o", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stderr[-4000:]}"
    partial.rename(out)


def _wait(server: "subprocess.Popen[bytes]", port: int, patience: float = 120.0) -> None:
    until = time.monotonic() + patience
    while time.monotonic() < until and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"rpc-server did not listen on port {port} (exit status {server.poll()})")
