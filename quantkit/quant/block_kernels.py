"""The steps of error feedback in GGUF blocks, in C where a compiler is: block_kernels.c, with the bytes of numpy.

`gguf/compiled.py` says how the library is compiled and kept. It is used only if its results equal those of
`block_search.py` and `block_steps.py` on test matrices of every type; otherwise these are used. QUANTKIT_C_KERNELS=0
disables it.
"""

import ctypes
import functools
import os
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quantkit.gguf.blocks import FORMATS, BlockFormat
from quantkit.gguf.compiled import compiled
from quantkit.quant import block_search, block_steps
from quantkit.quant.block_search import Scales
from quantkit.quant.block_steps import Fit, GroupLevels, Run
from quantkit.quant.grid import Array

SOURCE = Path(__file__).with_name("block_kernels.c")
# -O3 unrolls the loops over rows before they become vectors: a tenth of the speed
_OPTIMIZE = ("-O2", "-ftree-vectorize")
_LONGEST_RUN = 16  # ROWS in the C file
_lock = threading.Lock()


class Steps(Protocol):
    """The functions of `block_search` and `block_steps` that have two implementations."""

    def search_scales(self, x: Array, weight: Array, format_: BlockFormat) -> Scales: ...

    def feed_back_run(
        self, format_: BlockFormat, run: Run, step: Array, base: Array | None, points: Array, errors: Array
    ) -> None: ...

    def descend_group(self, format_: BlockFormat, group: GroupLevels, moved: Array) -> None: ...

    def refit_halves(self, fit: Fit, d: Array, dmin: Array | None, error: Array, moved: Array) -> None: ...

    def refit_integers(
        self, format_: BlockFormat, fit: Fit, scale: Array, minimum: Array | None, error: Array, moved: Array
    ) -> None: ...


class NumpySteps:
    """The reference."""

    search_scales = staticmethod(block_search.search_scales)
    feed_back_run = staticmethod(block_steps.feed_back_run)
    descend_group = staticmethod(block_steps.descend_group)
    refit_halves = staticmethod(block_steps.refit_halves)
    refit_integers = staticmethod(block_steps.refit_integers)


class _Format(ctypes.Structure):
    _fields_ = (
        ("group", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("low", ctypes.c_float),
        ("high", ctypes.c_float),
        ("least_scale", ctypes.c_float),
        ("greatest_scale", ctypes.c_float),
        ("greatest_minimum", ctypes.c_float),
        ("by_half", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class _Prepared:
    """A format as C has it, and the arrays that it points to: candidates of the search, and `ends` of super-blocks."""

    format: _Format
    candidates: Array
    ends: Array
    by_half: Array | None


@functools.cache
def _prepared(format_: BlockFormat) -> _Prepared:
    by_half = None if format_.table is None else block_search.points_by_half(format_.table)
    return _Prepared(
        _Format(
            format_.group,
            format_.groups,
            format_.low,
            format_.high,
            format_.least_scale,
            format_.greatest_scale,
            format_.greatest_minimum,
            None if by_half is None else by_half.ctypes.data,
        ),
        block_search.candidates(format_),
        block_search.super_ends(format_),
        by_half,
    )


def _pointer(array: Array | NDArray[np.int64] | None, *, rows_apart: bool = False) -> int | None:
    """The address of an array; with `rows_apart` its rows may have gaps between them.

    Raises ValueError for any other array with gaps.
    """
    if array is None:
        return None
    if not (array.flags.c_contiguous or (rows_apart and array.strides[-1] == array.itemsize)):
        raise ValueError("the array has gaps")
    # array.ctypes.data takes several times as long, and a sweep asks for thousands of addresses
    address: int = array.__array_interface__["data"][0]
    return address


class CSteps:
    """The functions of block_kernels.c."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        arguments: dict[str, tuple[Any, ...]] = {
            "search_scales": (pointer,) * 3 + (number,) * 2 + (pointer, number) * 2 + (pointer,) * 4,
            "feed_back_run": (pointer, number, number, pointer, pointer, number) + (pointer,) * 6,
            "descend_group": (pointer, number, pointer, number) + (pointer,) * 5,
            "refit": (pointer,) + (number,) * 3 + (pointer,) * 9,
        }
        self._functions: dict[str, Any] = {}
        for name, types in arguments.items():
            function = getattr(library, f"quantkit_{name}")
            function.restype, function.argtypes = None, types
            self._functions[name] = function

    def search_scales(self, x: Array, weight: Array, format_: BlockFormat) -> Scales:
        prepared, (n_cols, n_rows) = _prepared(format_), x.shape
        n_blocks, n_groups = n_cols // format_.block, n_cols // format_.group
        affine = format_.greatest_minimum > 0
        weight = np.ascontiguousarray(weight, np.float32)
        d, scales = np.empty((n_blocks, n_rows), np.float32), np.empty((n_groups, n_rows), np.float32)
        dmin, minima = (np.empty_like(d), np.empty_like(scales)) if affine else (None, None)
        self._functions["search_scales"](
            ctypes.addressof(prepared.format),
            _pointer(x),
            _pointer(weight),
            n_cols,
            n_rows,
            _pointer(prepared.candidates),
            len(prepared.candidates),
            _pointer(prepared.ends),
            len(prepared.ends),
            *map(_pointer, (d, dmin, scales, minima)),
        )
        return Scales(d, dmin, scales, minima)

    def feed_back_run(
        self, format_: BlockFormat, run: Run, step: Array, base: Array | None, points: Array, errors: Array
    ) -> None:
        n, n_rows = run.weights.shape
        if n > _LONGEST_RUN:
            raise ValueError(f"a run of {n} columns is longer than {_LONGEST_RUN}")
        self._functions["feed_back_run"](
            ctypes.addressof(_prepared(format_).format),
            n,
            n_rows,
            _pointer(run.columns),
            _pointer(run.feedback, rows_apart=True),
            run.feedback.strides[0] // 4,
            *map(_pointer, (run.weights, run.target, step, base, points, errors)),
        )

    def descend_group(self, format_: BlockFormat, group: GroupLevels, moved: Array) -> None:
        self._functions["descend_group"](
            ctypes.addressof(_prepared(format_).format),
            group.pull.shape[1],
            _pointer(group.hessian, rows_apart=True),
            group.hessian.strides[0] // 4,
            *map(_pointer, (group.pull, group.step, group.points, group.error, moved)),
        )

    def refit_halves(self, fit: Fit, d: Array, dmin: Array | None, error: Array, moved: Array) -> None:
        self._refit(None, fit, d, dmin, error, moved)

    def refit_integers(
        self, format_: BlockFormat, fit: Fit, scale: Array, minimum: Array | None, error: Array, moved: Array
    ) -> None:
        self._refit(format_, fit, scale, minimum, error, moved)

    def _refit(
        self, format_: BlockFormat | None, fit: Fit, scale: Array, minimum: Array | None, error: Array, moved: Array
    ) -> None:
        self._functions["refit"](
            None if format_ is None else ctypes.addressof(_prepared(format_).format),
            format_ is None,
            *fit.u.shape,
            *map(_pointer, (fit.u, fit.hu, fit.v, fit.hv, fit.pull)),
            *map(_pointer, (scale, minimum, error, moved)),
        )


NUMPY: Steps = NumpySteps()


def steps() -> Steps:
    """The fastest implementation on this machine."""
    with _lock:
        return _tested_steps()


@functools.cache
def _tested_steps() -> Steps:
    if os.environ.get("QUANTKIT_C_KERNELS") == "0":
        return NUMPY
    try:
        fast = CSteps(compiled(SOURCE, optimize=_OPTIMIZE))
    except (OSError, subprocess.SubprocessError, AttributeError):
        return NUMPY
    return fast if all(same_results(fast, format_) for format_ in FORMATS.values()) else NUMPY


def same_results(steps_: Steps, format_: BlockFormat, seed: int = 0) -> bool:
    """Whether an implementation has the results of numpy for test matrices of a type."""
    return all(
        np.array_equal(a, b, equal_nan=True)
        for a, b in zip(_results(steps_, format_, seed), _results(NUMPY, format_, seed), strict=True)
    )


def _results(steps_: Steps, format_: BlockFormat, seed: int) -> list[Array]:
    """All arrays that the steps make or change, for 19 rows, which are not whole vectors."""
    random, n_cols, n_rows = np.random.default_rng(seed), format_.block, 19
    x: Array = (random.standard_normal((n_cols, n_rows)) * np.exp(random.normal(0, 1, n_rows))).astype(np.float32)
    x[:, 0], x[:, 1], x[:, 2] = 0, 1e-30, np.rint(x[:, 2] * 8) / 8
    scales = steps_.search_scales(x, random.random(n_cols).astype(np.float32), format_)
    step, base = scales.step(format_), scales.base(format_)
    matrix: Array = random.standard_normal((n_cols, n_cols)).astype(np.float32)
    columns = random.permutation(n_cols)[:_LONGEST_RUN].astype(np.int64)
    points, errors = np.zeros_like(x), np.zeros_like(x[:_LONGEST_RUN])
    run = Run(columns, matrix[:_LONGEST_RUN, :_LONGEST_RUN] * np.float32(0.1), x[columns], x[columns])
    steps_.feed_back_run(format_, run, step, base, points, errors)
    error, moved = np.zeros_like(x), np.zeros_like(x)
    hessian: Array = matrix + n_cols * np.eye(n_cols, dtype=np.float32)
    first = slice(0, format_.group)
    pull = np.ascontiguousarray(x[::-1])
    group = GroupLevels(hessian[first, first], pull[first].copy(), step[0].copy(), points[first], error[first])
    steps_.descend_group(format_, group, moved[first])
    u: Array = points + np.float32(0.5)
    v: Array | None = None if base is None else -np.ones_like(x)
    fit = Fit(u, hessian @ u, v, None if v is None else hessian @ v, pull)
    d, scale = scales.d[0].copy(), scales.scales[0].copy()
    dmin = None if scales.dmin is None else scales.dmin[0].copy()
    minimum = None if scales.minima is None else scales.minima[0].copy()
    steps_.refit_halves(fit, d, dmin, error, moved)
    if format_.has_group_scales:
        steps_.refit_integers(format_, fit, scale, minimum, error, moved)
    arrays = (
        scales.d,
        scales.dmin,
        scales.scales,
        scales.minima,
        points,
        errors,
        error,
        moved,
        d,
        dmin,
        scale,
        minimum,
    )
    return [array for array in arrays if array is not None]
