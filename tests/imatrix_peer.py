"""llama-imatrix itself, compiled from the llama-cpp-python sdist against the installed libllama, in half a minute."""

import fcntl
import hashlib
import importlib.util
import subprocess
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.packages import CACHE, fetch_sdist_parts

SOURCE = ("llama-cpp-python", "0.3.36", "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e")
_TREE = "vendor/llama.cpp/"
_PARTS = ("common/", "ggml/include/", "include/", "tools/imatrix/", "vendor/nlohmann/")
_WRAPPER = Path(__file__).with_suffix(".cpp")
_FILES = ("common/common.cpp", "common/imatrix-loader.cpp")


@dataclass(frozen=True)
class Entry:
    """What llama-imatrix has of one tensor: sums (as many values as inputs of all its matrices), counts."""

    sums: NDArray[np.float32]
    counts: NDArray[np.float32]


def llama_imatrix(model: Path, tokens: NDArray[np.int32], folder: Path, *, output: bool = False) -> dict[str, Entry]:
    """The importance matrix of `model` over `tokens` (samples, length), by llama-imatrix, entry by tensor name."""
    ids, out = folder / "tokens.i32", folder / "imatrix.gguf"
    tokens.astype("<i4").tofile(ids)
    out.unlink(missing_ok=True)
    command = [str(_program()), str(model), str(ids), str(out), str(tokens.shape[1])]
    command += ["--process-output"] if output else []
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0 and out.exists(), done.stdout[-2000:] + done.stderr[-4000:]
    tensors = {tensor.name: np.array(tensor.data, np.float32) for tensor in gguf.GGUFReader(out).tensors}
    names = {name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")}
    return {name: Entry(tensors[f"{name}.in_sum2"].ravel(), tensors[f"{name}.counts"].ravel()) for name in names}


def _program() -> Path:
    tree = fetch_sdist_parts(*SOURCE, "imatrix", tuple(_TREE + part for part in _PARTS)) / _TREE
    libraries = _libraries()
    told = hashlib.sha256(_WRAPPER.read_bytes() + str(libraries).encode()).hexdigest()[:16]
    program = CACHE.parent / "imatrix-peer" / f"llama-imatrix-{told}"
    program.parent.mkdir(parents=True, exist_ok=True)
    with (program.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            partial = program.with_suffix(".partial")
            include = [
                f"-I{tree / folder}" for folder in ("common", "include", "ggml/include", "vendor", "tools/imatrix")
            ]
            link = [f"-L{libraries}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{libraries}"]
            sources = [str(_WRAPPER), *(str(tree / file) for file in _FILES)]
            options = ["-O1", "-std=c++17", "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections"]
            _run(["c++", *options, *include, *sources, *link, "-o", str(partial)])
            partial.rename(program)
    return program


def _libraries() -> Path:
    """Where llama-cpp-python keeps libllama and ggml; found without loading them."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None and spec.origin is not None, "llama-imatrix needs the extra `run`"
    return Path(spec.origin).parent / "lib"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stderr[-4000:]}"
