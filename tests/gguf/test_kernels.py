"""The kernels against llama.cpp's quantizer, against each other, and at the edges where ggml aborts."""

import ctypes
import importlib.util
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.errors import MissingExtraError, UnsupportedError
from quantkit.gguf import kernels, numpy_kernels
from quantkit.gguf.finite import all_finite
from quantkit.gguf.kernels import dequantize_rows, library, quantize_rows, validate_rows
from quantkit.gguf.mix_rules import NEEDS_IMATRIX
from quantkit.gguf.types import Q2_0, TENSOR_TYPES, row_bytes
from tests.helpers import oracle
from tests.helpers.oracle import against_ggml

_T = GGMLQuantizationType
_Floats = NDArray[np.float32]
# ggml takes 2 to 11 seconds in every process to build the tables of these
SLOW = {"iq1_s", "iq1_m", "iq2_s", "iq2_xs"}
QUICK = {name: kind for name, kind in TENSOR_TYPES.items() if name not in SLOW}
every_type = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full if name in SLOW else ()) for name in TENSOR_TYPES]
)
COLS = 1536
ROWS = 40


def weights_like_a_models(seed: int = 0, rows: int = ROWS, cols: int = COLS) -> _Floats:
    """Gaussian rows of different scale with a few outliers, and rows of zeros, of tiny values and of one value."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, cols)) * 0.02 * np.exp(random.standard_normal((rows, 1)))
    values[random.random(values.shape) < 0.001] *= 20
    values[0], values[1], values[2] = 0.0, values[1] * 1e-30, 0.37
    values[3, : cols // 2] = 0.0
    return values.astype(np.float32)


def importances(cols: int = COLS) -> _Floats:
    return np.exp(np.random.default_rng(9).standard_normal(cols) * 2).astype(np.float32)


def _model_of(types: Iterable[str], path: Path, values: _Floats) -> None:
    """A GGUF in which tensor blk.0.TYPE.weight waits to become TYPE, each with the same values."""
    writer = gguf.GGUFWriter(path, "llama")
    sizes = {"n_layer": 1, "n_embd": 512, "n_ff": 1024, "n_head": 8, "n_head_kv": 8}
    for key, value in oracle.model_metadata("llama", **sizes).items():
        if isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
    for name in types:
        writer.add_tensor(f"blk.0.{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _assert_bytes_of_llama_cpp(types: Mapping[str, GGMLQuantizationType], folder: Path, *, weighted: bool) -> None:
    values = weights_like_a_models()
    _model_of(types, folder / "model.gguf", values)
    patterns = [(rf"\.{name}\.", kind) for name, kind in types.items()]
    imatrix = {f"blk.0.{name}.weight": importances() for name in types} if weighted else None
    oracle.llama_quantize(folder / "model.gguf", folder / "theirs.gguf", 7, imatrix=imatrix, tensor_types=patterns)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(folder / "theirs.gguf").tensors}
    for name, kind in types.items():
        tensor = theirs[f"blk.0.{name}.weight"]
        assert tensor.tensor_type == kind
        ours = quantize_rows(kind, values, importances() if weighted else None)
        assert ours.tobytes() == tensor.data.tobytes(), name


@against_ggml
def test_without_importances_every_type_has_the_bytes_of_llama_cpps_quantizer(tmp_path: Path) -> None:
    # llama.cpp refuses the smallest types without importances
    types = {name: kind for name, kind in TENSOR_TYPES.items() if kind not in NEEDS_IMATRIX}
    _assert_bytes_of_llama_cpp(types, tmp_path, weighted=False)


@against_ggml
def test_with_importances_types_have_the_bytes_of_llama_cpps_quantizer(tmp_path: Path) -> None:
    _assert_bytes_of_llama_cpp(QUICK, tmp_path, weighted=True)


@against_ggml
@pytest.mark.full
def test_with_importances_every_type_has_the_bytes_of_llama_cpps_quantizer(tmp_path: Path) -> None:
    _assert_bytes_of_llama_cpp(TENSOR_TYPES, tmp_path, weighted=True)


@every_type
def test_dequantizing_agrees_with_the_gguf_package(name: str) -> None:
    kind = TENSOR_TYPES[name]
    data = quantize_rows(kind, weights_like_a_models(), importances())
    expected = _by_hand(kind, data) if kind in (_T.Q1_0, Q2_0) else numpy_kernels.dequantize(kind, data)
    np.testing.assert_array_equal(dequantize_rows(kind, data, COLS), expected)


def _by_hand(kind: GGMLQuantizationType, data: NDArray[np.uint8]) -> _Floats:
    """Q1_0 and Q2_0, which the gguf package lacks: block_q1_0 and block_q2_0 of ggml-common.h."""
    blocks = data.reshape(-1, 18)
    d = blocks[:, :2].copy().view("<f2").astype(np.float32)
    if kind == _T.Q1_0:
        levels = 2 * np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").astype(np.float32) - 1
    else:
        pairs = blocks[:, 2:, None] >> np.array([0, 2, 4, 6], np.uint8) & np.uint8(3)
        levels = pairs.reshape(len(blocks), -1).astype(np.float32) - 1
    return np.asarray(levels * d, np.float32).reshape(len(data), -1)


@every_type
def test_rows_do_not_influence_each_other_so_chunks_and_threads_give_the_same_bytes(name: str) -> None:
    kind, values = TENSOR_TYPES[name], weights_like_a_models(rows=12, cols=512)
    whole = quantize_rows(kind, values, importances(512))
    chunks = [slice(0, 1), slice(1, 6), slice(6, 7), slice(7, 12)]
    out = np.empty_like(whole)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda rows: quantize_rows(kind, values[rows], importances(512), out[rows]), chunks))
    np.testing.assert_array_equal(out, whole)


_WHEEL = """
import sys
import numpy as np
from quantkit.gguf import kernels
from quantkit.gguf.types import TENSOR_TYPES, block_size
wheel = kernels.candidates()[1]()
assert wheel.library.name == "libggml-python"
kernels._first_working = lambda: wheel
given = np.load(sys.argv[1])
results = {}
for name in sys.argv[3:]:
    kind = TENSOR_TYPES[name]
    for shape in (256, 576, 768, 2048):
        rows = given[f"rows{shape}"]
        for weighted in (False, True):
            if shape % block_size(kind)[0] or not wheel.has(kind, weighted):
                continue
            if not weighted and kernels.requires_imatrix(kind):
                continue
            weights = given[f"weights{shape}"] if weighted else None
            results[f"{name} {shape} {weighted}"] = kernels.quantize_rows(kind, rows, weights)
np.savez(sys.argv[2], **results)
"""


def _assert_wheel_is_equal(types: Iterable[str], folder: Path) -> None:
    assert library().name == "llama-cpp-python"
    rows = {f"rows{cols}": weights_like_a_models(cols, 12, cols) for cols in (256, 576, 768, 2048)}
    weights = {f"weights{cols}": importances(cols) for cols in (256, 576, 768, 2048)}
    np.savez(folder / "given.npz", **rows, **weights)
    # in a process of its own: two libraries of one soname do not live well together
    subprocess.run([sys.executable, "-c", _WHEEL, folder / "given.npz", folder / "made.npz", *types], check=True)
    made = np.load(folder / "made.npz")
    assert {key.split()[0] for key in made} == set(types) - {"iq1_m"}
    for key in made:
        name, cols, weighted = key.split()
        ours = quantize_rows(
            TENSOR_TYPES[name], rows[f"rows{cols}"], weights[f"weights{cols}"] if weighted == "True" else None
        )
        np.testing.assert_array_equal(made[key], ours, err_msg=key)


def test_the_wheel_makes_the_same_bytes_as_llama_cpps_library(tmp_path: Path) -> None:
    _assert_wheel_is_equal(QUICK, tmp_path)


@pytest.mark.full
def test_the_wheel_makes_the_same_bytes_for_every_type_it_is_trusted_with(tmp_path: Path) -> None:
    _assert_wheel_is_equal(TENSOR_TYPES, tmp_path)


def test_llama_cpp_still_loads_after_the_kernels_were_used() -> None:
    code = """
import numpy as np
from gguf import GGMLQuantizationType
from quantkit.gguf.kernels import quantize_rows
quantize_rows(GGMLQuantizationType.Q4_0, np.ones((2, 32), np.float32))
import llama_cpp
llama_cpp.llama_backend_init()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", sorted(kind.name.lower() for kind in numpy_kernels.EXACT))
def test_numpy_makes_the_same_bytes_for_the_types_it_is_trusted_with(name: str) -> None:
    kind, values = TENSOR_TYPES[name], weights_like_a_models()
    np.testing.assert_array_equal(numpy_kernels.quantize(kind, values), quantize_rows(kind, values))
    if kind not in numpy_kernels.CHANGED_BY_WEIGHTS:
        np.testing.assert_array_equal(numpy_kernels.quantize(kind, values), quantize_rows(kind, values, importances()))


def test_without_a_library_a_type_numpy_cannot_make_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_first_working", kernels.NumpyKernels)
    rows = weights_like_a_models(cols=256)
    assert quantize_rows(_T.Q4_0, rows).shape == (ROWS, row_bytes(_T.Q4_0, 256))
    with pytest.raises(MissingExtraError, match=r"gguf \S+ cannot write q4_k with .* pip install libggml-python"):
        quantize_rows(_T.Q4_K, rows)
    with pytest.raises(MissingExtraError, match="q4_0 with an importance matrix"):
        quantize_rows(_T.Q4_0, rows, importances(256))


def test_a_library_that_makes_wrong_bytes_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(kernels.NumpyKernels):
        def quantize(
            self,
            kind: GGMLQuantizationType,
            rows: _Floats,
            weights: _Floats | None,
            out: NDArray[np.uint8],
        ) -> None:
            super().quantize(kind, rows, weights, out)
            out[-1, -1] ^= 1

    def absent() -> kernels.Kernels:
        raise OSError("cannot open shared object file")

    monkeypatch.setattr(kernels, "candidates", lambda: (absent, Wrong, kernels.NumpyKernels))
    assert type(kernels._first_working.__wrapped__()) is kernels.NumpyKernels


@pytest.mark.parametrize("name", ["iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"])
@pytest.mark.parametrize("value", [1e9, 1e30, float("inf"), float("-inf"), float("nan")])
def test_values_that_make_ggml_abort_are_refused_in_a_sentence(name: str, value: float) -> None:
    rows = weights_like_a_models(cols=256)
    rows[5, 17] = value
    with pytest.raises(UnsupportedError, match=f"{name} cannot hold weights up to"):
        quantize_rows(TENSOR_TYPES[name], rows, importances(256))


@every_type
@pytest.mark.parametrize("peak", [1e4, 9e7])
def test_values_below_that_do_not_abort(name: str, peak: float) -> None:
    rows = weights_like_a_models(cols=256)
    rows *= peak / np.abs(rows).max()
    quantize_rows(TENSOR_TYPES[name], rows, importances(256))


def test_a_type_that_needs_importances_is_refused_without_them() -> None:
    for kind in (_T.IQ2_XXS, _T.IQ2_XS, _T.IQ1_S):
        with pytest.raises(UnsupportedError, match="importance matrix"):
            quantize_rows(kind, weights_like_a_models(cols=256))


@pytest.fixture(scope="module")
def ggml() -> ctypes.CDLL:
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None and spec.origin is not None
    lib = ctypes.CDLL(str(Path(spec.origin).parent / "lib" / "libggml-base.so"))
    lib.ggml_validate_row_data.restype = ctypes.c_bool
    lib.ggml_validate_row_data.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
    return lib


@every_type
def test_the_check_for_finite_floats_agrees_with_ggmls(name: str, ggml: ctypes.CDLL) -> None:
    kind = TENSOR_TYPES[name]
    good = quantize_rows(kind, weights_like_a_models(rows=4, cols=256), importances(256))
    random, verdicts = np.random.default_rng(3), []
    for position in range(good.shape[1] - 1):
        data = good.copy()
        data[2, position : position + 2] = random.choice([0xFF, 0x7C], 2)
        if position % 2:  # IQ1_M's scale is spread over words
            data[2, position::2] |= np.uint8(random.choice([0x70, 0xFF]))
        theirs = ggml.ggml_validate_row_data(kind, data.ctypes.data, data.size)
        assert all_finite(kind, data) == theirs, position
        verdicts.append(theirs)
    assert validate_rows(kind, good)
    if kind not in (_T.F32, _T.NVFP4):  # NVFP4's scales of 8 bits are always finite
        assert False in verdicts


@every_type
def test_infinity_that_overflows_into_a_scale_is_noticed(name: str) -> None:
    kind = TENSOR_TYPES[name]
    rows = np.full((1, 256), 9e7, np.float32)
    data = quantize_rows(kind, rows, np.ones(256, np.float32))
    finite = np.isfinite(dequantize_rows(kind, data, 256)).all()
    assert validate_rows(kind, data) == finite


def test_arrays_of_the_wrong_shape_are_refused_before_ggml_sees_them() -> None:
    rows = weights_like_a_models(cols=256)
    with pytest.raises(ValueError, match=r"weights have shape \(255,\), not \(256,\)"):
        quantize_rows(_T.Q4_K, rows, importances(255))
    with pytest.raises(ValueError, match="not contiguous uint8"):
        quantize_rows(_T.Q4_K, rows, out=np.empty((1, 1), np.uint8))
    with pytest.raises(ValueError, match="not whole blocks"):
        quantize_rows(_T.Q4_K, rows[:, :100])
    with pytest.raises(ValueError, match="not 144 bytes"):
        dequantize_rows(_T.Q4_K, np.zeros((2, 100), np.uint8), 256)
