"""Faster kernels with the same bytes as ggml: the C files in c/, compiled with this machine's compiler (compiled.py).

A kernel is used only if its bytes equal those of the reference on test rows, with and without importances. If the
compiler rounds differently or is missing, ggml's kernels are used. QUANTKIT_C_KERNELS=0 in the environment disables
these kernels.
"""

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.gguf.compiled import compiled
from quantkit.gguf.types import row_bytes

_T = GGMLQuantizationType
_FLOATS = NDArray[np.float32]
_BYTES = NDArray[np.uint8]
Quantize = Callable[[GGMLQuantizationType, _FLOATS, _FLOATS | None, _BYTES], None]

_FOLDER = Path(__file__).parent / "c"
SOURCES = tuple(_FOLDER / name for name in ("k_quants.c", "block32.c", "iq4.c"))
KINDS = (
    *(_T.Q8_0, _T.Q6_K, _T.Q5_K, _T.Q5_1, _T.Q5_0, _T.Q4_K, _T.Q4_1, _T.Q4_0),
    *(_T.IQ4_NL, _T.IQ4_XS, _T.Q3_K, _T.Q2_K),
)
# -O3 unrolls the loops over lanes before they become vectors
_OPTIMIZE = ("-O2", "-ftree-vectorize")


class CKernels:
    """The kernels of a compiled library, each tested against `reference` before its first use.

    `reference(kind, rows, weights, out)` quantizes float32 rows (n, n_cols) with importances (n_cols,) or None into
    `out`, uint8 (n, row_bytes).
    """

    def __init__(self, library: ctypes.CDLL, reference: Quantize) -> None:
        self._library = library
        self._reference = reference
        self._lock = threading.Lock()
        self._tested: dict[tuple[GGMLQuantizationType, bool], Quantize | None] = {}
        # newer versions of ggml clamp a level before they round it, older ones after it
        rows, weights = clamping_rows()
        clamped_first = _made(self._bound(_T.Q5_K, 1), _T.Q5_K, rows, weights)
        self._clamps_first = int(np.array_equal(clamped_first, _made(reference, _T.Q5_K, rows, weights)))

    def get(self, kind: GGMLQuantizationType, *, weighted: bool) -> Quantize | None:
        """The kernel of `kind` with or without importances; None when there is none or its bytes differ."""
        if kind not in KINDS:
            return None
        key = kind, weighted
        if key not in self._tested:
            with self._lock:
                if key not in self._tested:
                    self._tested[key] = self._test(kind, weighted)
        return self._tested[key]

    def kinds(self) -> tuple[GGMLQuantizationType, ...]:
        """The types with a kernel, without those whose bytes differed when they were tested."""
        failed = {kind for (kind, _), kernel in self._tested.items() if kernel is None}
        return tuple(kind for kind in KINDS if kind not in failed)

    def _test(self, kind: GGMLQuantizationType, weighted: bool) -> Quantize | None:
        kernel = self._bound(kind, self._clamps_first)
        rows = awkward_rows()
        for weights in awkward_importances() if weighted else (None,):
            if not np.array_equal(_made(kernel, kind, rows, weights), _made(self._reference, kind, rows, weights)):
                return None
        return kernel

    def _bound(self, kind: GGMLQuantizationType, clamps_first: int) -> Quantize:
        function = getattr(self._library, f"quantkit_{kind.name.lower()}")
        function.restype = None
        function.argtypes = (
            *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64),
            *(ctypes.c_void_p, ctypes.c_int),
        )

        def quantize(_kind: GGMLQuantizationType, rows: _FLOATS, weights: _FLOATS | None, out: _BYTES) -> None:
            importances = None if weights is None else weights.ctypes.data
            function(rows.ctypes.data, out.ctypes.data, *rows.shape, importances, clamps_first)

        return quantize


def load(reference: Quantize) -> CKernels | None:
    """The kernels that can replace `reference`; None without a compiler."""
    if os.environ.get("QUANTKIT_C_KERNELS") == "0":
        return None
    try:
        return CKernels(compiled(*SOURCES, optimize=_OPTIMIZE), reference)
    except (OSError, subprocess.SubprocessError):
        return None


def awkward_rows() -> _FLOATS:
    """Test rows, float32 (n, 512): outliers, zeros, one sign, constant rows, tiny and large values."""
    rng = np.random.default_rng(0)
    plain = rng.standard_normal((3, 512))
    kinds = [
        plain,
        rng.standard_t(2, (3, 512)),
        plain * np.exp(rng.normal(0, 4, (3, 32))).repeat(16, axis=1),
        plain * (rng.random((3, 512)) < 0.05),
        np.abs(plain),
        -np.abs(plain),
        plain * 1e-7,
        plain * 1e-40,
        plain * 1e4,
        np.round(plain * 8) / 8,
        np.full((1, 512), 0.3),
        np.zeros((1, 512)),
    ]
    return np.concatenate(kinds).astype(np.float32)


def awkward_importances() -> tuple[_FLOATS, ...]:
    """Test importances, float32 (512,): of a wide range, and zero for half of the columns."""
    rng = np.random.default_rng(1)
    spread = np.exp(2 * rng.standard_normal(512))
    return spread.astype(np.float32), (spread * (rng.random(512) < 0.5)).astype(np.float32)


def clamping_rows() -> tuple[_FLOATS, _FLOATS]:
    """Rows (4, 256) and importances (256,) of which ggml's versions make different Q5_K, Q4_K, Q5_1 and Q4_1.

    The fitted minimum of a sub-block comes so close to its maximum that levels exceed the range of the rounding.
    """
    rng = np.random.default_rng(723)
    rows = -np.exp(3 * rng.standard_normal((4, 256)))
    return rows.astype(np.float32), (rng.random(256) < 0.5).astype(np.float32)


def _made(quantize: Quantize, kind: GGMLQuantizationType, rows: _FLOATS, weights: _FLOATS | None) -> _BYTES:
    out = np.empty((len(rows), row_bytes(kind, rows.shape[1])), dtype=np.uint8)
    quantize(kind, rows, weights, out)
    return out
