"""float8.c, which rounds to 8-bit floats ten times as fast as numpy where a compiler is (gguf/compiled.py).

It is used only if its bytes equal those of numpy on test matrices. QUANTKIT_C_KERNELS=0 disables it.
"""

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.gguf.compiled import compiled
from quantkit.quant.grid import Array

SOURCE = Path(__file__).with_name("float8.c")
_OPTIMIZE = ("-O2", "-ftree-vectorize")
Bits = NDArray[np.uint16]
Round = Callable[[Array, Array, int], NDArray[np.uint8]]
"""(w (n, n_in), scales, block) -> bytes (n, n_in). `block` of both axes, or 0 for a scale a row."""
_lock = threading.Lock()
_tested: dict[str, Round | None] = {}
_of_bfloat16: dict[str, "Bfloat16Kernel | None"] = {}


@dataclass(frozen=True)
class Bfloat16Kernel:
    """The same from bfloat16, without a copy in float32. w: the bits (n, n_in). `block`: as in `Round`."""

    library: ctypes.CDLL

    def maxima(self, w: Bits, block: int) -> Array:
        """The largest magnitude of each row (n, 1), or of each block: float32, infinite if one is NaN or infinite."""
        rows, columns = w.shape
        width = block or columns
        out = np.empty((rows, -(-columns // width)), np.uint16)
        self.library.quantkit_bfloat16_maxima(w.ctypes.data, rows, columns, width, out.ctypes.data)
        if block:
            out = np.maximum.reduceat(out, np.arange(0, rows, block), axis=0)
        wide = np.minimum(out, np.uint16(0x7F80)).astype(np.uint32) << np.uint32(16)
        maxima: Array = wide.view(np.float32)
        return maxima

    def round(self, w: Bits, scales: Array, block: int) -> NDArray[np.uint8]:
        """w / scale rounded to the nearest float8."""
        scales, out = np.ascontiguousarray(scales, np.float32), np.empty(w.shape, np.uint8)
        sizes = (block or 1, block or w.shape[1], scales.shape[1])
        self.library.quantkit_float8_of_bfloat16(w.ctypes.data, scales.ctypes.data, *w.shape, *sizes, out.ctypes.data)
        return out


def bfloat16_kernel(reference: Round) -> Bfloat16Kernel | None:
    """The kernel for bfloat16; None without a compiler, or if its bytes are not those of `reference`."""
    rounding_kernel(reference)
    with _lock:
        if "kernel" not in _of_bfloat16:
            _of_bfloat16["kernel"] = _load_bfloat16(reference)
        return _of_bfloat16["kernel"]


def _load_bfloat16(reference: Round) -> Bfloat16Kernel | None:
    if _tested["kernel"] is None:
        return None
    library = compiled(SOURCE, optimize=_OPTIMIZE)
    try:
        for function, arrays in ((library.quantkit_bfloat16_maxima, 1), (library.quantkit_float8_of_bfloat16, 2)):
            function.restype = None
            function.argtypes = (ctypes.c_void_p,) * arrays + (ctypes.c_int64,) * (1 + 2 * arrays) + (ctypes.c_void_p,)
    except AttributeError:  # a wheel of an older version
        return None
    kernel = Bfloat16Kernel(library)
    rng = np.random.default_rng(0)
    every = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    every = every[np.isfinite(_wide(every)).all(axis=1)]
    noise = (rng.standard_normal((150, 301)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    for w, block in ((every, 0), (noise, 0), (noise, 128)):
        shape = (-(-len(w) // block), -(-w.shape[1] // block)) if block else (len(w), 1)
        scales = rng.random(shape, np.float32)
        with np.errstate(over="ignore"):
            expected = reference(_wide(w), scales, block)
        if not np.array_equal(kernel.round(w, scales, block), expected):
            return None
    return kernel


def _wide(bits: Bits) -> Array:
    wide: Array = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return wide


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
