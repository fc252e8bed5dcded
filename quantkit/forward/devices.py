"""The device of the forward: numpy on the CPU, or torch on a CUDA device."""

import ctypes
import sys
from typing import Any

from quantkit.errors import UsageError


def find_device(name: str) -> Any:
    """None for numpy on the CPU, or torch's device, float32 without TF32; as `arrays.place` takes it.

    `name`: "cpu", "cuda" or "auto", which is CUDA where a driver and torch are there. Raises UsageError for a
    "cuda" that cannot be had.
    """
    if name == "cpu" or (name == "auto" and not _has_driver()):
        return None
    try:
        import torch
    except ImportError as error:
        if name == "auto":
            return None
        raise UsageError(
            "--device cuda needs torch, which is not installed; run: pip install 'quantkit[torch]', or use --device cpu"
        ) from error
    if not torch.cuda.is_available():
        if name == "auto":
            return None
        raise UsageError(
            f"--device cuda: torch {torch.__version__} finds no CUDA device; use --device cpu, or install a torch"
            " that is built for this machine's driver"
        )
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device("cuda", torch.cuda.current_device())


def _has_driver() -> bool:
    """Whether NVIDIA's driver is installed. Without it, torch would take seconds and 200 MB to find no GPU."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
