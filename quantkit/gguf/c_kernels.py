"""Faster kernels with the same bytes as ggml: the C files in c/, compiled with this machine's compiler (compiled.py).

A kernel is used only if its bytes equal those of the reference on test rows, with and without importances. If the
compiler rounds differently or is missing, ggml's kernels are used. QUANTKIT_C_KERNELS=0 in the environment disables
these kernels.

On other processors than x86-64 the recorded bytes of x86-64 are the reference: compilers for ARM fuse multiplications
and additions in ggml, which rounds once where x86-64 rounds twice. These kernels never fuse, so a file is the same
everywhere.

The recorded bytes are the reference of the lattice types too (lattice.py), on every processor: ggml takes up to ten
seconds for its own tables before it writes the first row.
"""

import ctypes
import hashlib
import os
import platform
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.gguf.compiled import compiled
from quantkit.gguf.lattice import LATTICE_KINDS, grid_tables
from quantkit.gguf.types import row_bytes

_T = GGMLQuantizationType
_FLOATS = NDArray[np.float32]
_BYTES = NDArray[np.uint8]
Quantize = Callable[[GGMLQuantizationType, _FLOATS, _FLOATS | None, _BYTES], None]

_X86_64 = platform.machine() in ("x86_64", "AMD64")

_FOLDER = Path(__file__).parent / "c"
SOURCES = tuple(_FOLDER / name for name in ("k_quants.c", "block32.c", "iq4.c"))
# a library of its own, compiled when the first of its types is written
LATTICE_SOURCES = (_FOLDER / "iq_grids.c",)
KINDS = (
    *(_T.Q8_0, _T.Q6_K, _T.Q5_K, _T.Q5_1, _T.Q5_0, _T.Q4_K, _T.Q4_1, _T.Q4_0),
    *(_T.IQ4_NL, _T.IQ4_XS, _T.Q3_K, _T.Q2_K),
    *LATTICE_KINDS,
)
# sha256 (24 digits) of the bytes of `regular_rows` without and with importances, as ggml 0.25.3 writes them on x86-64
X86_64_BYTES = {
    _T.Q8_0: "6b79d6fd19dc997ceabbf175",
    _T.Q6_K: "2f813d54ecb8db28a5f78796",
    _T.Q5_K: "6633337492255809c677731e",
    _T.Q5_1: "ea9e32759b0610afcf5a3a3a",
    _T.Q5_0: "384c9e19439330319fabb2a2",
    _T.Q4_K: "24b37ebd671d8219a68dcf1c",
    _T.Q4_1: "c0c12a71231ef6a18f205932",
    _T.Q4_0: "12b248b71db4607e30db4395",
    _T.IQ4_NL: "20e079472b2fb41912c46c2b",
    _T.IQ4_XS: "63c353fc7578d81edf4f2505",
    _T.Q3_K: "72ed65f1a7ed3c5e682eb820",
    _T.Q2_K: "695b5bae1082f01fe5edaaf5",
    _T.IQ2_XXS: "2773ee8c43242239c8aaaab9",
    _T.IQ2_XS: "5255320d55317d854f8b21e5",
    _T.IQ2_S: "15c64d2b7706fa408fb1b196",
    _T.IQ3_XXS: "a5772ddb5b734c33cff208c0",
    _T.IQ3_S: "842d9a3bc86ceab0209a0543",
}
# types that ggml refuses to quantize without importances (ggml_quantize_requires_imatrix)
NEED_IMPORTANCES = (_T.IQ2_XXS, _T.IQ2_XS, _T.IQ1_S)
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
        try:
            kernel = self._bound(kind, self._clamps_first)
        except (OSError, subprocess.SubprocessError):
            return None  # the library of the lattice types does not compile
        if _X86_64 and kind not in LATTICE_KINDS:
            return kernel if self._equals_reference(kernel, kind, weighted) else None
        return kernel if bytes_digest(kernel, kind) == X86_64_BYTES[kind] else None

    def _equals_reference(self, kernel: Quantize, kind: GGMLQuantizationType, weighted: bool) -> bool:
        rows = awkward_rows()
        for weights in awkward_importances() if weighted else (None,):
            if not np.array_equal(_made(kernel, kind, rows, weights), _made(self._reference, kind, rows, weights)):
                return False
        return True

    def _bound(self, kind: GGMLQuantizationType, clamps_first: int) -> Quantize:
        library = self._library_with_grid(kind) if kind in LATTICE_KINDS else self._library
        function = getattr(library, f"quantkit_{kind.name.lower()}")
        function.restype = None
        function.argtypes = (
            *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64),
            *(ctypes.c_void_p, ctypes.c_int),
        )

        def quantize(_kind: GGMLQuantizationType, rows: _FLOATS, weights: _FLOATS | None, out: _BYTES) -> None:
            importances = None if weights is None else weights.ctypes.data
            function(rows.ctypes.data, out.ctypes.data, *rows.shape, importances, clamps_first)

        return quantize

    def _library_with_grid(self, kind: GGMLQuantizationType) -> ctypes.CDLL:
        library = compiled(*LATTICE_SOURCES, optimize=_OPTIMIZE)
        tables = grid_tables(kind)
        arrays = tables.start, tables.neighbour, tables.index
        library.quantkit_set_grid(LATTICE_KINDS.index(kind), *(ctypes.c_void_p(array.ctypes.data) for array in arrays))
        return library


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


def regular_rows() -> _FLOATS:
    """The test rows, float32 (n, 512), without those of subnormal numbers.

    The inverse scale of these is infinite, and C leaves the conversion of a NaN to an integer to the processor.
    """
    rows = awkward_rows()
    regular: _FLOATS = rows[np.abs(rows).max(axis=1) > np.finfo(np.float32).tiny]
    return regular


def bytes_digest(quantize: Quantize, kind: GGMLQuantizationType) -> str:
    """24 digits of the sha256 of the bytes of `regular_rows`, without (where it can) and with importances."""
    digest = hashlib.sha256()
    for weights in (*(() if kind in NEED_IMPORTANCES else (None,)), *awkward_importances()):
        digest.update(_made(quantize, kind, regular_rows(), weights).data)
    return digest.hexdigest()[:24]


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
