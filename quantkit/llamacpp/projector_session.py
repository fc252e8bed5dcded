"""A projector in llama.cpp: whether libmtmd is there, whether it loads a file, and the vectors of an image."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantkit.errors import MissingExtraError
from quantkit.llamacpp.session import require_llama_cpp, run_child
from quantkit.scratch import scratch_folder


def require_libmtmd() -> None:
    """Raises MissingExtraError when llama-cpp-python is not installed, or was built without libmtmd."""
    require_llama_cpp()
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None and spec.origin is not None
    # the variable is llama-cpp-python's own
    folder = Path(os.environ.get("MTMD_CPP_LIB") or Path(spec.origin).parent / "lib")
    if not any(path.name.split(".")[0] in ("libmtmd", "mtmd") for path in folder.glob("*mtmd*")):
        raise MissingExtraError(
            "llama-cpp-python was built without libmtmd, which reads images; run: pip install --force-reinstall"
            " --no-cache-dir llama-cpp-python==0.3.36"
        )


def load_projector(model: Path, mmproj: Path, *, timeout: float = 600.0) -> None:
    """Let libmtmd load a projector for a text model, on the CPU.

    Raises MissingExtraError without libmtmd, QuantkitError if llama.cpp refuses a file.
    """
    require_libmtmd()
    files = {"model": str(model.absolute()), "mmproj": str(mmproj.absolute())}
    run_child({"task": "load_projector", **files, "n_threads": None}, model, timeout=timeout)


def image_features(model: Path, mmproj: Path, image: Path, *, timeout: float = 600.0) -> list[npt.NDArray[np.float32]]:
    """The vectors that the text model takes for an image, by libmtmd, a (n_tokens, width) array for each chunk.

    Raises MissingExtraError without libmtmd, QuantkitError if llama.cpp refuses a file.
    """
    require_libmtmd()
    with scratch_folder() as folder:
        out = folder / "features"
        files = {"model": str(model.absolute()), "mmproj": str(mmproj.absolute()), "image": str(image.absolute())}
        request = {"task": "image_features", **files, "out": str(out), "n_threads": None}
        shapes = run_child(request, model, timeout=timeout)
        values = np.fromfile(out, np.float32)
    ends = np.cumsum([rows * columns for rows, columns in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(values, ends), shapes, strict=True)]
