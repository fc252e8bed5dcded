"""float8.c, which rounds to 8-bit floats ten times as fast as numpy where a compiler is (gguf/compiled.py).

It is used only if its bytes equal those of numpy on test matrices. QUANTKIT_C_KERNELS=0 disables it.
"""

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.gguf.compiled import compiled
from quantkit.quant.grid import Array

SOURCE = Path(__file__).with_name("float8.c")
_OPTIMIZE = ("-O2", "-ftree-vectorize")
Round = Callable[[Array, Array, int], NDArray[np.uint8]]
"""(w (n, n_in), scales, block) -> bytes (n, n_in). `block` of both axes, or 0 for a scale a row."""
_lock = threading.Lock()
_tested: dict[str, Round | None] = {}


def rounding_kernel(reference: Round) -> Round | None:
    """The kernel; None without a compiler, or if its bytes are not those of `reference`."""
    with _lock:
        if "kernel" not in _tested:
            _tested["kernel"] = _load(reference)
        return _tested["kernel"]


def _load(reference: Round) -> Round | None:
    if os.environ.get("QUANTKIT_C_KERNELS") == "0":
        return None
    try:
        function = compiled(SOURCE, optimize=_OPTIMIZE).quantkit_float8
    except (OSError, subprocess.SubprocessError, AttributeError):
        return None
    function.restype = None
    function.argtypes = (ctypes.c_void_p,) * 2 + (ctypes.c_int64,) * 5 + (ctypes.c_void_p,)

    def kernel(w: Array, scales: Array, block: int) -> NDArray[np.uint8]:
        w, scales = np.ascontiguousarray(w, np.float32), np.ascontiguousarray(scales, np.float32)
        out = np.empty(w.shape, np.uint8)
        sizes = (block or 1, block or w.shape[1], scales.shape[1])
        function(w.ctypes.data, scales.ctypes.data, *w.shape, *sizes, out.ctypes.data)
        return out

    return kernel if same_bytes(kernel, reference) else None


def same_bytes(kernel: Round, reference: Round) -> bool:
    """Whether a kernel has the bytes of `reference`: of all halves and their neighbours, and of noise."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = halves[np.isfinite(halves)][None]
    ones = np.ones((1, 1), np.float32)
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal((150, 301)) * np.exp2(rng.integers(-20, 12, (150, 301)))).astype(np.float32)
    row_scales, block_scales = rng.random((150, 1), np.float32), rng.random((2, 3), np.float32)
    cases = [(x, ones, 0) for x in (halves, np.nextafter(halves, np.float32(0)), np.nextafter(halves, np.inf))]
    cases += [(noise, row_scales, 0), (noise, block_scales, 128)]
    return all(np.array_equal(kernel(*case), reference(*case)) for case in cases)
