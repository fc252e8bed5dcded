"""Faster K-quants with the same bytes: c_kernels.c, built by this machine's C compiler when there is one.

The first use compiles it (a second or two) into the user's cache folder; later ones load it from there. A kernel is
used only if it gives the reference's bytes on rows of every awkward sort, so a compiler that rounds otherwise costs
speed, never a byte. Without a compiler everything works as before. QUANTKIT_LANES=0 in the environment turns it off.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.gguf.types import row_bytes

_T = GGMLQuantizationType
Quantize = Callable[[GGMLQuantizationType, NDArray[np.float32], NDArray[np.uint8]], None]

SOURCE = Path(__file__).with_name("c_kernels.c")
KINDS = (_T.Q2_K, _T.Q4_K, _T.Q5_K, _T.Q6_K)
# Fused multiply-adds round once where ggml's code rounds twice.
_FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC")
_COMPILE_SECONDS = 60


def load(reference: Quantize) -> Mapping[GGMLQuantizationType, Quantize]:
    """The kernels that may stand in for `reference`, by type; none without a compiler or where bytes differ.

    `reference(kind, rows, out)` quantizes float32 rows (n, n_cols) into `out`, uint8 (n, row_bytes).
    """
    if os.environ.get("QUANTKIT_LANES") == "0":
        return {}
    try:
        library = ctypes.CDLL(str(_built()))
    except (OSError, subprocess.SubprocessError):
        return {}
    found = {kind: _bound(library, kind) for kind in KINDS}
    rows = awkward_rows()
    return {
        kind: fast
        for kind, fast in found.items()
        if np.array_equal(_made(fast, kind, rows), _made(reference, kind, rows))
    }


def awkward_rows() -> NDArray[np.float32]:
    """Rows of 512 float32 of every sort: outliers, zeros, one sign, no spread, faint, huge."""
    rng = np.random.default_rng(0)
    plain = rng.standard_normal((8, 512))
    kinds = [
        plain,
        rng.standard_t(2, (8, 512)),
        plain * np.exp(rng.normal(0, 4, (8, 32))).repeat(16, axis=1),
        plain * (rng.random((8, 512)) < 0.05),
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


def _made(quantize: Quantize, kind: GGMLQuantizationType, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    out = np.empty((len(rows), row_bytes(kind, rows.shape[1])), dtype=np.uint8)
    quantize(kind, rows, out)
    return out


def _bound(library: ctypes.CDLL, kind: GGMLQuantizationType) -> Quantize:
    function = getattr(library, f"quantkit_{kind.name.lower()}")
    function.restype = None
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)

    def quantize(_kind: GGMLQuantizationType, rows: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
        function(rows.ctypes.data, out.ctypes.data, rows.size)

    return quantize


def _built() -> Path:
    """The shared library for this source, compiler and processor; compiled when the cache does not hold it.

    Raises OSError (no compiler, no writable cache) or subprocess.SubprocessError (it does not compile).
    """
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))), None)
    if compiler is None:
        raise FileNotFoundError("no C compiler")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantkit"
    identity = [SOURCE.read_bytes(), " ".join(_FLAGS).encode(), str(Path(compiler).resolve()).encode(), _processor()]
    library = cache / f"c_kernels-{hashlib.sha256(b'|'.join(identity)).hexdigest()[:16]}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = Path(folder) / "c_kernels.so"
            command = [compiler, *_FLAGS, "-o", str(made), str(SOURCE), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_SECONDS)
            made.replace(library)
    return library


def _processor() -> bytes:
    """What -march=native looks at: the cache may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return os.uname().machine.encode()
    return b"".join(sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model name"))}))
