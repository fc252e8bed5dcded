"""The quantization kernels: ggml's code through ctypes, so that the bytes equal llama.cpp's.

Faster kernels with the same bytes replace ggml's for the types that c_kernels.py can compile.

There are three implementations, tried in this order. If llama-cpp-python is installed, its libggml-base is used: a
second library with the same soname, loaded first, would be bound to libllama and break it. Then libggml-python, a wheel
that needs no compiler. Then numpy (the gguf package), which has fewer types.
"""

import ctypes
import functools
import importlib.metadata
import importlib.util
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.errors import MissingExtraError, UnsupportedError
from quantkit.gguf import c_kernels, numpy_kernels
from quantkit.gguf.finite import all_finite
from quantkit.gguf.types import row_bytes

_T = GGMLQuantizationType
_FLOATS = NDArray[np.float32]
_BYTES = NDArray[np.uint8]


@dataclass(frozen=True)
class Library:
    """The source of the kernels, for the origin record."""

    name: str
    """The package: "llama-cpp-python", "libggml-python" or "gguf"."""
    version: str
    """The package's version."""
    ggml: str
    """ggml's own version; empty for numpy."""

    def __str__(self) -> str:
        return f"{self.name} {self.version}" + (f" (ggml {self.ggml})" if self.ggml else "")


def library() -> Library:
    """The implementation in use. The first call loads and tests it."""
    return _kernels().library


def quantize_rows(
    kind: GGMLQuantizationType, rows: _FLOATS, weights: _FLOATS | None = None, out: _BYTES | None = None
) -> _BYTES:
    """Quantize `rows`, float32 (n_rows, n_cols), into uint8 (n_rows, row_bytes) (ggml_quantize_chunk).

    `weights`: float32 (n_cols,), the importance of each column, or None. `out`: the array to write, None for a new one.
    Rows are independent, so a tensor may be quantized in chunks and by several threads; the GIL is released. F32, F16
    and BF16 are supported too.

    Raises:
        UnsupportedError: a value exceeds the range of the type, or the type needs `weights`.
        MissingExtraError: the installed implementation does not have the type.
        ValueError: an array has a wrong shape or dtype.
    """
    require(kind, weighted=weights is not None)
    if weights is None and requires_imatrix(kind):
        raise UnsupportedError(f"{kind.name.lower()} needs an importance matrix; pass --imatrix")
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    n_rows, n_cols = rows.shape
    if out is None:
        out = np.empty((n_rows, row_bytes(kind, n_cols)), dtype=np.uint8)
    if out.shape != (n_rows, row_bytes(kind, n_cols)) or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"out is {out.dtype} {out.shape}, not contiguous uint8 {(n_rows, row_bytes(kind, n_cols))}")
    if weights is not None:
        weights = np.ascontiguousarray(weights, dtype=np.float32)
        if weights.shape != (n_cols,):
            raise ValueError(f"weights have shape {weights.shape}, not ({n_cols},)")
    if kind in _LATTICE:
        _check_range(kind, rows, weights)
    ours = _c_kernels() if kind in c_kernels.KINDS else None
    quantize = ours and ours.get(kind, weighted=weights is not None)
    (quantize or _kernels().quantize)(kind, rows, weights, out)
    return out


def dequantize_rows(kind: GGMLQuantizationType, data: _BYTES, n_cols: int) -> _FLOATS:
    """Dequantize `data`, uint8 (n_rows, row_bytes), to float32 (n_rows, n_cols) (the type's to_float).

    I32 has no such function in ggml; its integers become floats.
    """
    data = np.ascontiguousarray(data)
    n_rows, width = data.shape
    if data.dtype != np.uint8 or width != row_bytes(kind, n_cols):
        raise ValueError(f"rows are {width} {data.dtype}, not {row_bytes(kind, n_cols)} bytes for {n_cols} columns")
    if kind == GGMLQuantizationType.I32:
        return data.view("<i4").astype(np.float32)
    out = np.empty((n_rows, n_cols), dtype=np.float32)
    _kernels().dequantize(kind, data, out)
    return out


def validate_rows(kind: GGMLQuantizationType, data: _BYTES) -> bool:
    """Whether all floats in the quantized `data`, uint8, are finite (ggml_validate_row_data)."""
    return all_finite(kind, np.ascontiguousarray(data))


def accelerated() -> tuple[str, ...]:
    """The types that quantkit's own C kernels quantize on this machine, with the same bytes as the library."""
    ours = _c_kernels()
    return tuple(kind.name for kind in ours.kinds()) if ours else ()


def requires_imatrix(kind: GGMLQuantizationType) -> bool:
    """Whether the kernel needs importances (ggml_quantize_requires_imatrix)."""
    return kind in c_kernels.NEED_IMPORTANCES


def require(kind: GGMLQuantizationType, *, weighted: bool) -> None:
    """Raise MissingExtraError if the implementation in use cannot write `kind` with llama.cpp's bytes.

    `weighted`: with an importance matrix, which changes the arithmetic of most types.
    """
    kernels = _kernels()
    if not kernels.has(kind, weighted):
        type_name = f"{kind.name.lower()} with an importance matrix" if weighted else kind.name.lower()
        raise MissingExtraError(
            f"the quantization kernels of {kernels.library} cannot write {type_name} with llama.cpp's bytes; "
            f"install ones that can with: {_better(kernels.library.name)}"
        )


class Kernels(Protocol):
    """One implementation. Arrays are contiguous and have the right shape."""

    library: Library

    def has(self, kind: GGMLQuantizationType, weighted: bool) -> bool:
        """Whether it writes `kind` with llama.cpp's bytes; `weighted`: with importances."""
        ...

    def quantize(self, kind: GGMLQuantizationType, rows: _FLOATS, weights: _FLOATS | None, out: _BYTES) -> None:
        """Quantize rows into `out`."""
        ...

    def dequantize(self, kind: GGMLQuantizationType, data: _BYTES, out: _FLOATS) -> None:
        """Dequantize bytes into `out`."""
        ...


# package, module, and the types whose bytes differ from the llama.cpp that quantkit must equal (ggml 0.25.3)
_PACKAGES: tuple[tuple[str, str, frozenset[GGMLQuantizationType]], ...] = (
    ("llama-cpp-python", "llama_cpp", frozenset()),
    ("libggml-python", "libggml", frozenset({_T.IQ1_M})),
)
_LIBRARY_FILES = ("lib*/libggml-base.so", "lib*/libggml-base.dylib", "bin/ggml-base.dll", "lib*/ggml-base.dll")

# these search a lattice of points; they abort the process when a float overflow leaves no nearest point
_LATTICE = frozenset({_T.IQ1_S, _T.IQ1_M, _T.IQ2_XXS, _T.IQ2_XS, _T.IQ2_S, _T.IQ3_XXS, _T.IQ3_S})
_PEAK, _WEIGHTED_PEAK = 1e8, 1e30


class _TypeTraits(ctypes.Structure):
    """struct ggml_type_traits of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    )


class GgmlKernels:
    """libggml-base. Raises OSError or AttributeError when the file is another library."""

    def __init__(self, path: Path, package: str, version: str, differing: frozenset[GGMLQuantizationType]) -> None:
        self._lib = ctypes.CDLL(str(path))
        self._lib.ggml_version.restype = ctypes.c_char_p
        self._lib.ggml_quantize_init.argtypes = (ctypes.c_int,)
        self._lib.ggml_quantize_chunk.restype = ctypes.c_size_t
        self._lib.ggml_quantize_chunk.argtypes = (
            *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
            *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
        )
        self._lib.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
        self._lib.ggml_get_type_traits.argtypes = (ctypes.c_int,)
        self.library = Library(package, version, self._lib.ggml_version().decode())
        self._differing = differing
        self._ready: set[GGMLQuantizationType] = set()
        self._lock = threading.Lock()

    def has(self, kind: GGMLQuantizationType, weighted: bool) -> bool:
        return kind not in self._differing

    def quantize(self, kind: GGMLQuantizationType, rows: _FLOATS, weights: _FLOATS | None, out: _BYTES) -> None:
        if kind not in self._ready:
            # the lattice types build tables at first use (up to 11 seconds), so one thread does it once
            with self._lock:
                self._lib.ggml_quantize_init(kind)
                self._ready.add(kind)
        importances = None if weights is None else weights.ctypes.data
        n_rows, n_cols = rows.shape
        size = self._lib.ggml_quantize_chunk(kind, rows.ctypes.data, out.ctypes.data, 0, n_rows, n_cols, importances)
        if size != out.size:
            raise RuntimeError(f"{self.library.name} wrote {size} bytes of {kind.name}, not {out.size}")

    def dequantize(self, kind: GGMLQuantizationType, data: _BYTES, out: _FLOATS) -> None:
        if kind == _T.F32:
            out[...] = data.view(np.float32)
            return
        self._lib.ggml_get_type_traits(kind).contents.to_float(data.ctypes.data, out.ctypes.data, out.size)


class NumpyKernels:
    """The gguf package's numpy code. It is slow and has few types, but needs no library."""

    def __init__(self) -> None:
        self.library = Library("gguf", importlib.metadata.version("gguf"), "")

    def has(self, kind: GGMLQuantizationType, weighted: bool) -> bool:
        return kind in numpy_kernels.EXACT and not (weighted and kind in numpy_kernels.CHANGED_BY_WEIGHTS)

    def quantize(self, kind: GGMLQuantizationType, rows: _FLOATS, weights: _FLOATS | None, out: _BYTES) -> None:
        out[...] = numpy_kernels.quantize(kind, rows)

    def dequantize(self, kind: GGMLQuantizationType, data: _BYTES, out: _FLOATS) -> None:
        out[...] = numpy_kernels.dequantize(kind, data)


def candidates() -> tuple[Callable[[], Kernels], ...]:
    """The implementations in the order of trial. A call raises when its implementation is not available."""
    libraries = (functools.partial(_open, package, module, stale) for package, module, stale in _PACKAGES)
    return (*libraries, NumpyKernels)


def _open(package: str, module: str, differing: frozenset[GGMLQuantizationType]) -> Kernels:
    """The library in an installed package. The package is not imported, because that loads all of llama.cpp."""
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for pattern in _LIBRARY_FILES:
            for path in sorted(Path(folder).glob(pattern)):
                return GgmlKernels(path, package, importlib.metadata.version(package), differing)
    raise FileNotFoundError(f"{package} is not installed")


def _works(kernels: Kernels) -> bool:
    """The load test: whether the library quantizes known rows correctly."""
    rows = np.linspace(-1.0, 1.0, 256, dtype=np.float32).reshape(2, 128) ** 3
    for kind in (_T.Q4_0, _T.Q8_0, _T.BF16):
        out = np.empty((2, row_bytes(kind, 128)), dtype=np.uint8)
        kernels.quantize(kind, rows, None, out)
        back = np.empty_like(rows)
        kernels.dequantize(kind, out, back)
        if not (np.array_equal(out, numpy_kernels.quantize(kind, rows)) and np.allclose(back, rows, atol=0.1)):
            return False
    return True


_loading = threading.Lock()


def _kernels() -> Kernels:
    with _loading:
        return _first_working()


@functools.cache
def _first_working() -> Kernels:
    for candidate in candidates():
        try:
            kernels = candidate()
            if _works(kernels):
                return kernels
        except (OSError, AttributeError, importlib.metadata.PackageNotFoundError):
            continue  # not installed, or built for another system; try the next
    raise MissingExtraError(
        "no quantization kernels work here, including those of the gguf package; reinstall with: "
        "pip install --force-reinstall quantkit"
    )


def _c_kernels() -> c_kernels.CKernels | None:
    with _loading:
        return _loaded_c_kernels()


@functools.cache
def _loaded_c_kernels() -> c_kernels.CKernels | None:
    kernels = _first_working()
    if not all(kernels.has(kind, True) for kind in c_kernels.KINDS):
        return None  # without ggml there is nothing to test them against
    return c_kernels.load(kernels.quantize)


def _better(current: str) -> str:
    return "pip install libggml-python" if current == "gguf" else "pip install llama-cpp-python"


def _check_range(kind: GGMLQuantizationType, rows: _FLOATS, weights: _FLOATS | None) -> None:
    """Raise UnsupportedError for rows that would abort the process. Their scales would overflow half precision."""
    peak = max(float(rows.max(initial=0.0)), -float(rows.min(initial=0.0)))
    weighted = peak * peak * (1.0 if weights is None else float(weights.max(initial=1.0)))
    if not (peak <= _PEAK and weighted <= _WEIGHTED_PEAK):
        heavy = "" if peak > _PEAK or weights is None else f" weighted by importances up to {weights.max():.3g}"
        raise UnsupportedError(
            f"{kind.name.lower()} cannot hold weights up to {peak:.3g}{heavy}; choose a q type, or f32 for this tensor"
        )
