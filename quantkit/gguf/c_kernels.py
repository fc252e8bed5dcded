"""Faster K-quant kernels with the same bytes as ggml: c_kernels.c, compiled with this machine's C compiler.

The first use compiles it (one or two seconds) into the user's cache folder; later uses load it from there. A kernel is
used only if its bytes equal those of the reference on test rows. If the compiler rounds differently or is
missing, ggml's kernels are used. QUANTKIT_C_KERNELS=0 in the environment disables these kernels.

The cached library is loaded only if this user alone can have written it. The folder and the files belong to this user,
are not writable by others and are not links. The library has the sha256 recorded at its compilation. Otherwise the
kernels are compiled again, in a private temporary folder if the cache folder is not private.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.gguf.types import row_bytes
from quantkit.private_cache import private_cache_folder, read_private
from quantkit.scratch import scratch_folder

_T = GGMLQuantizationType
Quantize = Callable[[GGMLQuantizationType, NDArray[np.float32], NDArray[np.uint8]], None]

_FOLDER = Path(__file__).parent
SOURCE = _FOLDER / "c_kernels.c"
_HEADERS = (_FOLDER / "half.h",)
KINDS = (_T.Q2_K, _T.Q4_K, _T.Q5_K, _T.Q6_K)
# No fused multiply-add: it rounds once where ggml's code rounds twice.
_FLAGS = ("-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_COMPILE_SECONDS = 60


def load(reference: Quantize) -> Mapping[GGMLQuantizationType, Quantize]:
    """The kernels that can replace `reference`, by type. A type whose bytes differ is absent; {} without a compiler.

    `reference(kind, rows, out)` quantizes float32 rows (n, n_cols) into `out`, uint8 (n, row_bytes).
    """
    if os.environ.get("QUANTKIT_C_KERNELS") == "0":
        return {}
    try:
        library = compiled(SOURCE)
    except (OSError, subprocess.SubprocessError):
        return {}
    candidates = {kind: _bound(library, kind) for kind in KINDS}
    rows = awkward_rows()
    return {
        kind: fast
        for kind, fast in candidates.items()
        if np.array_equal(_made(fast, kind, rows), _made(reference, kind, rows))
    }


def awkward_rows() -> NDArray[np.float32]:
    """Test rows, float32 (n, 512): outliers, zeros, one sign, constant rows, tiny and large values."""
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


def compiled(source: Path, optimize: Sequence[str] = ("-O3",)) -> ctypes.CDLL:
    """The library of a C file, from the cache or newly compiled. `optimize`: options of the compiler.

    Raises OSError (no compiler, no writable folder) or subprocess.SubprocessError (the source does not compile).
    """
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))), None)
    if compiler is None:
        raise FileNotFoundError("no C compiler")
    sources = [path.read_bytes() for path in (source, *_HEADERS)]
    flags = [*optimize, *_FLAGS]
    identity = [*sources, " ".join(flags).encode(), str(Path(compiler).resolve()).encode(), _processor()]
    name = f"{source.stem}-{hashlib.sha256(b'|'.join(identity)).hexdigest()[:16]}.so"
    cache = private_cache_folder()
    if cache is None:
        with scratch_folder() as folder:
            return ctypes.CDLL(str(_compile([compiler, *flags], source, folder / name)))
    library = _load_trusted(cache / name)
    if library is None:
        with scratch_folder(str(cache)) as folder:
            made = _compile([compiler, *flags], source, folder / name)
            digest = made.with_suffix(".sha256")
            digest.write_text(hashlib.sha256(made.read_bytes()).hexdigest())
            for path in (made, digest):
                path.chmod(0o644)
                path.replace(cache / path.name)
        library = _load_trusted(cache / name)
        if library is None:
            raise OSError(f"{cache / name} changed while it was compiled")
    return library


def _compile(compiler: Sequence[str], source: Path, library: Path) -> Path:
    command = [*compiler, f"-I{_FOLDER}", "-o", str(library), str(source), "-lm"]
    # the compiler's own temporary files stay there too, should it be killed
    environment = {**os.environ, "TMPDIR": str(library.parent)}
    subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_SECONDS, env=environment)
    return library


def _load_trusted(path: Path) -> ctypes.CDLL | None:
    """The library at `path`; None when it is missing, incomplete, or another user may have written it."""
    try:
        recorded = read_private(path.with_suffix(".sha256"))
        data = read_private(path)
    except OSError:
        return None
    if hashlib.sha256(data).hexdigest().encode() != recorded.strip():
        return None
    return ctypes.CDLL(str(path))


def _processor() -> bytes:
    """The processor that -march=native compiles for. Different machines may share the cache folder."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return os.uname().machine.encode()
    return b"".join(sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model name"))}))
