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


def free_memory(device: Any) -> int | None:
    """Bytes free on a CUDA device; None for numpy or another device."""
    if device is None or device.type != "cuda":
        return None
    import torch

    free: int = torch.cuda.mem_get_info(device)[0]
    return free


def peak_memory(device: Any) -> int | None:
    """The most bytes that this process has held on a CUDA device; None for numpy or another device."""
    if device is None or device.type != "cuda":
        return None
    import torch

    peak: int = torch.cuda.max_memory_reserved(device)
    return peak


def memory_errors() -> tuple[type[BaseException], ...]:
    """The exceptions of torch for a device whose memory is full; none before torch is imported."""
    torch = sys.modules.get("torch")
    return () if torch is None else (torch.cuda.OutOfMemoryError,)


def _has_driver() -> bool:
    """Whether NVIDIA's driver is installed. Without it, torch would take seconds and 200 MB to find no GPU."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
