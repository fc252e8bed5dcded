"""llama-imatrix itself, compiled from the llama-cpp-python sdist against the installed libllama, in half a minute."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.helpers.llama_tools import compiled_tool

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
    command = [str(program()), str(model), str(ids), str(out), str(tokens.shape[1])]
    command += ["--process-output"] if output else []
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0 and out.exists(), done.stdout[-2000:] + done.stderr[-4000:]
    return read_entries(out)


def program() -> Path:
    """llama-imatrix, compiled on first use."""
    return compiled_tool("imatrix", _WRAPPER, _FILES)


def read_entries(path: Path) -> dict[str, Entry]:
    """The entries of an importance matrix file, by tensor name."""
    tensors = {tensor.name: np.array(tensor.data, np.float32) for tensor in gguf.GGUFReader(path).tensors}
    names = {name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")}
    return {name: Entry(tensors[f"{name}.in_sum2"].ravel(), tensors[f"{name}.counts"].ravel()) for name in names}
