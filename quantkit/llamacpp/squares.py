"""Sums of squares of every weight's inputs, by llama.cpp itself: an importance matrix of any GGUF that it runs."""

import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CalibrationError, PassingError
from quantkit.llamacpp.session import LlamaSession
from quantkit.progress import Progress

WINDOWS, SUMS, COUNTS = "windows", ".sums", ".counts"
"""Names of the arrays of a file of sums: how many windows it covers, and the suffixes of a tensor's arrays."""
_SAVE_SECONDS = 30.0


@dataclass(frozen=True)
class TensorSums:
    """Of one GGUF tensor: sums of squares of its inputs, float64 (n_matrices, n_in), and tokens.

    `counts`: float64 (n_experts,) for routed experts, otherwise (1,).
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.float64]


def input_squares(
    model: Path, tokens: NDArray[np.int32], file: Path, *, threads: int, progress: Progress
) -> dict[str, TensorSums]:
    """Evaluate `tokens` (windows, length) and sum the squares of the inputs of every `blk.` weight, by tensor name.

    `file` keeps the sums; a killed run continues after the windows that it covers. The products that count are
    llama-imatrix's (collect_imatrix). Weights stay on the CPU.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        CalibrationError: the inputs are not finite, or no weight was multiplied.
        QuantkitError: llama.cpp cannot run the file.
    """
    with LlamaSession(model) as session:
        request = {
            "task": "inputs_open",
            "model": str(model.absolute()),
            "sums": str(file.absolute()),
            "n_threads": threads,
        }
        first = session.ask({**request, "n_ctx": int(tokens.shape[1])})
        progress.start("calibrating", len(tokens))
        if first:
            progress.advance(first, f"window {first} of {len(tokens)}")
        saved = time.monotonic()
        for number in range(first, len(tokens)):
            session.ask({"task": "inputs_window", "tokens": tokens[number].tolist()})
            if number + 1 == len(tokens) or time.monotonic() - saved > _SAVE_SECONDS:
                session.ask({"task": "inputs_save", "sums": str(file.absolute())})
                saved = time.monotonic()
            progress.advance(1, f"window {number + 1} of {len(tokens)}")
    return _checked(model, _read(file))


def forget_damaged(file: Path) -> None:
    """Remove a file of sums that a power cut damaged; the calibration then begins anew."""
    if not file.exists():
        return
    try:
        _read(file)
    except (ValueError, KeyError, BadZipFile, EOFError):
        file.unlink(missing_ok=True)


def _read(file: Path) -> dict[str, TensorSums]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise PassingError(f"cannot read {file} ({error.strerror or error}); run the same command again") from error
    with np.load(BytesIO(data)) as arrays:
        names = [name.removesuffix(SUMS) for name in arrays.files if name.endswith(SUMS)]
        return {name: TensorSums(arrays[name + SUMS], arrays[name + COUNTS]) for name in names}


def _checked(model: Path, sums: dict[str, TensorSums]) -> dict[str, TensorSums]:
    if not sums:
        raise CalibrationError(f"llama.cpp multiplied no weight of {model.name} named blk.; pass a language model")
    for name, entry in sums.items():
        if not np.isfinite(entry.sums).all():
            raise CalibrationError(f"the inputs of {name} in {model.name} are not finite; use a bf16 or f32 GGUF")
    return sums
