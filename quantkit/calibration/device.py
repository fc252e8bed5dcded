"""Where a calibration computes: numpy on the CPU, or torch on a GPU."""

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import MissingExtraError, UsageError


def choose_device(name: str) -> Any:
    """None for numpy on the CPU, or a device of torch. `auto` is CUDA where torch is installed and finds it.

    Raises:
        MissingExtraError: `cuda` without torch.
        UsageError: `cuda`, and torch finds none.
    """
    if name == "cpu":
        return None
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        if name == "auto":
            return None
        raise MissingExtraError(
            "--device cuda computes with torch, which is not installed; pip install 'quantkit[cuda]', or --device cpu"
        ) from None
    if torch.cuda.is_available():
        # TF32 keeps ten bits of a product, which statistics summed over thousands of tokens would feel
        torch.backends.cuda.matmul.allow_tf32 = False
        return torch.device("cuda")
    if name == "auto":
        return None
    built = getattr(torch.version, "cuda", None)
    why = "finds no CUDA device" if built else "was built without CUDA"
    raise UsageError(f"--device cuda: torch {torch.__version__} {why}; take --device cpu, which needs no torch")


def host(x: Any) -> NDArray[Any]:
    """The array of numpy that holds what x does."""
    if isinstance(x, np.ndarray):
        return x
    values: NDArray[Any] = x.cpu().numpy()
    return values
