"""llama.cpp's own converter as a source of tensors: what runs it, what it converts, and where it is found.

The converter needs torch and its own gguf package, so it runs with another Python (converter_session.py).
"""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from quantkit.errors import UsageError
from quantkit.files import user_path
from quantkit.llamacpp.pinned_converter import PINNED, pinned_converter
from quantkit.progress import SILENT, Progress

FOLDER_VARIABLE = "QUANTKIT_LLAMA_CPP"
"""Environment variable: the folder of llama.cpp's converter, or a checkout of llama.cpp."""
PYTHON_VARIABLE = "QUANTKIT_LLAMA_CPP_PYTHON"
"""Environment variable: the Python that runs the converter."""
SCRIPT = "convert_hf_to_gguf.py"
_PYTHONS = (".venv/bin/python", "venv/bin/python", "../.venv/bin/python", "../venv/bin/python")
_SECONDS = 900.0
"""Seconds without an answer after which the converter counts as hung."""


@dataclass(frozen=True)
class Converter:
    """A converter: its script (None for the package that `python` has installed), and the Python that runs it."""

    script: Path | None
    python: Path

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.script.parent) if self.script else f"the package of {self.python}"


@dataclass(frozen=True)
class GivenTensors:
    """Tensors that replace those of the weight files. `dtypes` and `shapes` by name, dtypes as safetensors names them.

    `rows(name, start, stop)` gives rows of the tensor seen as (prod(shape[:-1]), shape[-1]). `config`: the content of
    config.json if it differs from the file's.
    """

    dtypes: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    rows: Callable[[str, int, int], NDArray[Any]]
    config: bytes | None = None


@dataclass(frozen=True)
class ConverterOptions:
    """Where the converter is (`folder`, `python`; None for the environment), and what it converts.
    `pre`: the name of the BPE pre-tokenizer. `arguments`: further options of its command line. `seconds`: the longest
    wait for one answer. `given`: tensors of the checkpoint that the converter takes from this process.
    """

    folder: Path | None = None
    python: Path | None = None
    pre: str | None = None
    arguments: tuple[str, ...] = ()
    seconds: float = _SECONDS
    given: "GivenTensors | None" = None


def find_converter(
    options: ConverterOptions,
    environment: Mapping[str, str] | None = None,
    *,
    offline: bool = False,
    progress: Progress = SILENT,
) -> Converter | None:
    """The converter that the options or the environment name; None if neither names one.

    A Python beside the converter (.venv or venv, in its folder or the one above) serves before quantkit's own.

    Raises:
        UsageError: the folder has no convert_hf_to_gguf.py, or the Python does not exist.
        HubError, QuantkitError: see `pinned_converter`.
    """
    environment = os.environ if environment is None else environment
    folder = options.folder or _path_of(environment.get(FOLDER_VARIABLE))
    python = options.python or _path_of(environment.get(PYTHON_VARIABLE))
    if python is not None and not python.is_file():
        raise UsageError(f"{python}, the Python of llama.cpp's converter, was not found; correct --converter-python")
    if folder is None:
        return Converter(None, python) if python is not None else None
    if str(folder) == PINNED and not folder.exists():
        folder = pinned_converter(offline=offline, progress=progress)
    script = folder if folder.name == SCRIPT else folder / SCRIPT
    if not script.is_file():
        raise UsageError(
            f"{folder} has no {SCRIPT}; pass a checkout of llama.cpp, the folder of its converter, or"
            f" '{PINNED}' to --converter"
        )
    script = script.absolute()
    beside = (script.parent / name for name in _PYTHONS)
    return Converter(script, python or next((path for path in beside if path.exists()), Path(sys.executable)))


def _path_of(text: str | None) -> Path | None:
    return user_path(text) if text else None
