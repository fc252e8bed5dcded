"""Programs of llama.cpp's tools, compiled from the llama-cpp-python sdist against the installed libllama.

A wrapper of ours (tests/*.cpp) includes a tool's source as it stands and replaces its command line and what else would
need the whole of llama.cpp's common library, so that it compiles in half a minute. Each is compiled once and kept.
"""

import fcntl
import hashlib
import importlib.util
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.packages import CACHE, fetch_sdist_parts

SOURCE = ("llama-cpp-python", "0.3.36", "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e")
_TREE = "vendor/llama.cpp/"
_PARTS = ("common/", "ggml/include/", "include/", "tools/imatrix/", "tools/perplexity/", "vendor/nlohmann/")
_OPTIONS = ("-std=c++17", "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections", "-pthread")


def compiled_tool(name: str, wrapper: Path, files: Sequence[str], *, optimize: str = "-O1") -> Path:
    """The program of llama.cpp's tools/NAME, from `wrapper`, which includes its source, and `files` of llama.cpp."""
    tree = fetch_sdist_parts(*SOURCE, "tools", tuple(_TREE + part for part in _PARTS)) / _TREE
    installed = libraries()
    digest = hashlib.sha256(wrapper.read_bytes() + f"{installed} {optimize} {files}".encode()).hexdigest()[:16]
    program = CACHE.parent / "llama-tools" / f"llama-{name}-{digest}"
    program.parent.mkdir(parents=True, exist_ok=True)
    with (program.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            partial = program.with_suffix(".partial")
            folders = ("common", "include", "ggml/include", "vendor", f"tools/{name}")
            include = [f"-I{tree / folder}" for folder in folders]
            link = [f"-L{installed}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{installed}"]
            sources = [str(wrapper), *(str(tree / file) for file in files)]
            _run(["c++", optimize, "-DNDEBUG", *_OPTIONS, *include, *sources, *link, "-o", str(partial)])
            partial.rename(program)
    return program


def libraries() -> Path:
    """Where llama-cpp-python keeps libllama and ggml; found without loading them."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None and spec.origin is not None, "llama.cpp's tools need the extra `dev`"
    return Path(spec.origin).parent / "lib"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stderr[-4000:]}"
