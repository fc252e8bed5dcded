"""The OpenAI-compatible servers of llama.cpp: which one is installed, and the command that starts it.

llama-server comes first: it queues requests, answers several at once if asked, calls tools, and has a web page. The
server of llama-cpp-python (extra `serve`) is the other one; it answers one request after the other.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.errors import MissingExtraError, QuantkitError, UsageError
from quantkit.system.python import StrEnum, module_command

if TYPE_CHECKING:
    from quantkit.llamacpp.conversation import Loading
    from quantkit.llamacpp.draft_choice import Draft
    from quantkit.llamacpp.sampling import Sampling

PROGRAM = "QUANTKIT_LLAMA_SERVER"
"""The environment variable that names llama-server."""
_PACKAGES = ("llama_cpp", "fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings")
_DEVICE = re.compile(r"^  (\S+): (.*) \((\d+) MiB, (\d+) MiB free\)$", re.M)
_MIB = 1 << 20
_HTTP_THREADS = 128
"""Connections that llama-server accepts at once; a further one waits. By default they are as few as the cores."""


class ServerChoice(StrEnum):
    """Which server `--server` takes; auto: llama-server if it is installed."""

    auto = "auto"
    llama_server = "llama-server"
    llama_cpp_python = "llama-cpp-python"


@dataclass(frozen=True)
class Serving:
    """What a server serves, and where. `alias`: the model's name in the API. `parallel`: requests answered at once.

    Every request may use `n_ctx` tokens. `api_key` None: every client may send requests.
    """

    model: Path
    loading: "Loading"
    n_ctx: int
    sampling: "Sampling"
    host: str
    port: int
    alias: str
    has_template: bool = True
    parallel: int = 1
    api_key: str | None = None


@dataclass(frozen=True)
class ServerCommand:
    """A command, its environment, and the text that it reads from its standard input."""

    words: list[str]
    environment: dict[str, str]
    stdin: str = ""

    def shown(self) -> str:
        """The line to type in a shell; without the API key, which `stdin` or the environment holds."""
        if not self.stdin:
            return shlex.join(self.words)
        settings = {key: None if key == "api_key" else value for key, value in json.loads(self.stdin).items()}
        return f"echo {shlex.quote(json.dumps(settings))} | {shlex.join(self.words)}"


def find_server(choice: ServerChoice) -> Path | None:
    """The llama-server to use; None for llama-cpp-python's server.

    Raises:
        MissingExtraError: the chosen server, or with `auto` any server, is not installed.
        UsageError: QUANTKIT_LLAMA_SERVER names a file that cannot be executed.
    """
    if choice != ServerChoice.llama_cpp_python and (program := _llama_server()):
        return program
    if choice == ServerChoice.llama_server:
        raise MissingExtraError(
            f"llama-server is not on the PATH; install llama.cpp, or set {PROGRAM} to the path of llama-server"
        )
    if any(importlib.util.find_spec(package) is None for package in _PACKAGES):
        raise MissingExtraError(
            f"serving needs a server; install llama.cpp's llama-server (on the PATH, or named by {PROGRAM}), or run:"
            " pip install 'quantkit[serve]'"
        )
    return None


def _llama_server() -> Path | None:
    named = os.environ.get(PROGRAM)
    program = shutil.which(named or "llama-server")
    if named and program is None:
        raise UsageError(f"{PROGRAM} is {named!r}, which is not a program; set it to the path of llama-server")
    return Path(program) if program else None


def server_devices(program: Path, rpc: Sequence[str]) -> list[dict[str, Any]]:
    """The GPUs of a llama-server: name, description, total and free memory in bytes.

    Its build may know other devices than llama-cpp-python's.

    Raises:
        QuantkitError: the program fails, or does not list its devices.
    """
    command = [str(program), *(["--rpc", ",".join(rpc)] if rpc else []), "--list-devices"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120.0, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QuantkitError(f"{program} --list-devices failed: {error}; set --gpu-layers N") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise QuantkitError(
            f"{program} --list-devices failed: {lines[-1]}; install a newer llama-server, or set --gpu-layers N"
        )
    return [
        {"name": name, "description": description, "memory": int(total) * _MIB, "free": int(free) * _MIB}
        for name, description, total, free in _DEVICE.findall(done.stdout)
    ]


def llama_server_command(program: Path, serving: Serving) -> ServerCommand:
    """llama-server with the placement, context and sampling of `serving`; the key goes through the environment."""
    loading, sampling = serving.loading, serving.sampling
    kv_type = loading.kv_type.name.lower()
    words = [str(program), "-m", str(serving.model), "--host", serving.host, "--port", str(serving.port)]
    words += ["-a", serving.alias, "-c", str(serving.n_ctx * serving.parallel), "-np", str(serving.parallel)]
    words += ["-ngl", "999" if loading.gpu_layers is None else str(loading.gpu_layers)]
    words += ["--n-cpu-moe", str(loading.cpu_moe)] if loading.cpu_moe else []
    if loading.tensor_split:
        words += ["-ts", ",".join(f"{share:g}" for share in loading.tensor_split)]
    words += [] if loading.kv_on_gpu else ["-nkvo"]
    words += ["-ctk", kv_type, "-ctv", kv_type] if kv_type != "f16" else []
    words += _draft_words(loading.draft) if loading.draft else []
    words += ["-t", str(loading.n_threads)] if loading.n_threads else []
    words += ["--rpc", ",".join(loading.rpc)] if loading.rpc else []
    words += ["--temp", str(sampling.temperature), "--top-k", str(int(sampling.top_k)), "--top-p", str(sampling.top_p)]
    words += ["--min-p", str(sampling.min_p), "--repeat-penalty", str(sampling.repeat_penalty)]
    words += ["--jinja", "--no-context-shift", "--threads-http", str(_HTTP_THREADS)]
    environment = {**os.environ, **({"LLAMA_API_KEY": serving.api_key} if serving.api_key else {})}
    return ServerCommand(words, environment)


def _draft_words(draft: "Draft") -> list[str]:
    """The options of speculative decoding; a file of its own is on one device."""
    words = ["--spec-type", "draft-mtp" if draft.mtp else "draft-simple", "--spec-draft-n-max", str(draft.count)]
    if draft.model is not None:
        words += ["-md", str(draft.model), "-devd", draft.device or "none", "-ngld", "999"]
    return words


def llama_cpp_python_command(serving: Serving) -> ServerCommand:
    """The server of llama-cpp-python in a child process of ours (server_child.py), which reads its settings.

    Raises:
        UsageError: more than one request at once, or a draft.
    """
    if serving.loading.draft:
        raise UsageError("llama-cpp-python's server drafts no tokens; remove --draft, or install llama-server")
    if serving.parallel > 1:
        raise UsageError(
            f"llama-cpp-python's server answers one request at a time, not {serving.parallel}; remove --parallel, or"
            " install llama-server"
        )
    settings = {
        "model": str(serving.model.absolute()),
        "alias": serving.alias,
        "host": serving.host,
        "port": serving.port,
        "api_key": serving.api_key,
        "n_ctx": serving.n_ctx,
        "has_template": serving.has_template,
        "sampling": {key: value for key, value in vars(serving.sampling).items() if value is not None},
        **serving.loading.request(),
    }
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "GGML_NO_BACKTRACE": "1"}
    package_root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    words = module_command("quantkit.llamacpp.server_child")
    return ServerCommand(words, environment, json.dumps(settings) + "\n")
