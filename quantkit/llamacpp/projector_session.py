"""A projector in llama.cpp: whether libmtmd is there and loads a file, and the vectors of an image or a sound."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantkit.errors import MissingExtraError
from quantkit.llamacpp.session import run_child
from quantkit.scratch import scratch_folder


def require_libmtmd() -> None:
    """Raises MissingExtraError when llama-cpp-python is not installed, or was built without libmtmd."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise MissingExtraError("reading images and sounds needs llama-cpp-python; run: pip install 'quantkit[serve]'")
    # the variable is llama-cpp-python's own
    folder = Path(os.environ.get("MTMD_CPP_LIB") or Path(spec.origin).parent / "lib")
    if not any(path.name.split(".")[0] in ("libmtmd", "mtmd") for path in folder.glob("*mtmd*")):
        raise MissingExtraError(
            "llama-cpp-python was built without libmtmd, which reads images and sounds; run: pip install"
            " --force-reinstall --no-cache-dir llama-cpp-python==0.3.36"
        )


def load_projector(model: Path, mmproj: Path, *, timeout: float = 600.0) -> None:
    """Let libmtmd load a projector for a text model, on the CPU.

    Raises MissingExtraError without libmtmd, QuantkitError if llama.cpp refuses a file.
    """
    require_libmtmd()
    files = {"model": str(model.absolute()), "mmproj": str(mmproj.absolute())}
    run_child({"task": "load_projector", **files, "n_threads": None}, model, timeout=timeout)


def file_features(
    model: Path, mmproj: Path, file: Path, *, sound: bool = False, timeout: float = 600.0
) -> list[npt.NDArray[np.float32]]:
    """The vectors that the text model takes for an image or a sound, by libmtmd: (n_tokens, width) for each chunk.

    Raises MissingExtraError without libmtmd, QuantkitError if llama.cpp refuses a file.
    """
    require_libmtmd()
    with scratch_folder() as folder:
        out = folder / "features"
        files = {"model": str(model.absolute()), "mmproj": str(mmproj.absolute())}
        file_names = [str(file.absolute())]
        files_to_encode = {"images": [] if sound else file_names, "sounds": file_names if sound else []}
        request = {"task": "file_features", **files, **files_to_encode, "out": str(out), "n_threads": None}
        shapes = run_child(request, model, timeout=timeout)
        values = np.fromfile(out, np.float32)
    ends = np.cumsum([rows * columns for rows, columns in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(values, ends), shapes, strict=True)]
