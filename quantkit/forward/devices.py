"""The device of the forward: numpy on the CPU, or torch on a CUDA device."""

import ctypes
import sys
import warnings
from typing import Any

from quantkit.errors import UsageError

_LIBRARIES = ("cuda", "cublas", "cusolver", "cusparse")


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of an old driver before it says that there is no device
        reason = None if torch.cuda.is_available() else "finds no CUDA device"
        reason = reason or _failure(torch)
    if reason is None:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        return torch.device("cuda", torch.cuda.current_device())
    if name == "auto":
        return None
    raise UsageError(
        f"--device cuda: torch {torch.__version__} {reason}; use --device cpu, or install a torch that is built for"
        " this machine's GPU and driver"
    )


def _failure(torch: Any) -> str | None:
    """Why torch cannot compute on a device that it finds: it has no code for this GPU, or another program holds it."""
    try:
        torch.ones(1, device="cuda").add(1).item()
    except RuntimeError as error:
        return f"cannot compute on the GPU ({' '.join(str(error).splitlines()[0].split()).rstrip('.')})"
    return None


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


def is_full(error: BaseException) -> bool:
    """Whether an exception of torch says that a device's memory is full; that of a library of CUDA says so in words."""
    if not isinstance(error, RuntimeError):
        return False
    if type(error).__name__ == "OutOfMemoryError" and type(error).__module__.partition(".")[0] == "torch":
        return True
    text = str(error).lower()
    return any(name in text for name in _LIBRARIES) and ("out of memory" in text or "alloc_failed" in text)


def release_freed_memory(device: Any) -> None:
    """Return memory that torch keeps for later tensors to a CUDA device: tensors of the next phase have other sizes."""
    if device is not None and device.type == "cuda":
        sys.modules["torch"].cuda.empty_cache()


def _has_driver() -> bool:
    """Whether NVIDIA's driver is installed. Without it, torch would take seconds and 200 MB to find no GPU."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
