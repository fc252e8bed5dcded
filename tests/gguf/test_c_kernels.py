"""quantkit's own kernels: ggml's bytes or not at all."""

import ctypes
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from quantkit.errors import UnsupportedError
from quantkit.gguf import c_kernels, compiled, kernels
from quantkit.gguf.lattice import LATTICE_KINDS
from quantkit.gguf.types import block_size, row_bytes, tensor_type
from tests.helpers.oracle import against_ggml

_Floats = NDArray[np.float32]
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler: the library's own kernels are used"
)
# ggml makes its tables of IQ2 types for seconds in each process, so only long tests have them
_SLOW_TABLES = tuple(kind for kind in LATTICE_KINDS if kind.name.startswith("IQ2"))
_VECTORS = tuple(kind for kind in c_kernels.KINDS if kind not in LATTICE_KINDS)
every_vector_kind = pytest.mark.parametrize("kind", _VECTORS, ids=lambda kind: kind.name)
every_kind = pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.full] * (kind in _SLOW_TABLES)) for kind in c_kernels.KINDS],
    ids=lambda kind: kind.name,
)


def ggml(kind: GGMLQuantizationType, rows: _Floats, weights: _Floats | None = None) -> NDArray[np.uint8]:
    """The library itself, past the kernels under test."""
    out = np.empty((len(rows), row_bytes(kind, rows.shape[1])), dtype=np.uint8)
    kernels._kernels().quantize(kind, rows, weights, out)
    return out


def inputs(rng: np.random.Generator, n: int, cols: int) -> dict[str, _Floats]:
    """Float32 (n, cols) rows of many distributions."""
    plain = rng.standard_normal((n, cols))
    sign = np.sign(rng.standard_normal((n, cols)))
    rows = {
        "normal": plain,
        "a model's": plain * 0.02 * (1 + 20 * (rng.random((n, cols)) < 0.001)),
        "heavy tails": rng.standard_t(2, (n, cols)),
        "every block of another scale": plain * np.exp(rng.normal(0, 4, (n, cols // 32))).repeat(32, axis=1),
        "mostly zeros": plain * (rng.random((n, cols)) < 0.05),
        "zeros in a part of a block": plain * (np.arange(cols) % 32 < 3),
        "zeros": plain * 0,
        "positive": np.abs(plain),
        "negative": -np.abs(plain) - 0.5,
        "negative and heavy": -np.exp(plain * 3),
        "heavier": np.exp(plain * 5) * sign,
        "tiny": plain * 1e-7,
        "denormal": plain * 10.0 ** rng.integers(-44, -30, (n, 1)),
        "large": plain * 1e4,
        "huge": plain * 1e12,
        "on a lattice": np.round(plain * 8) / 8,
        "constant": np.broadcast_to(rng.standard_normal((n, cols // 16)).repeat(16, axis=1), (n, cols)),
        "nearly constant": plain * 1e-6 - 1,
        "two values": (rng.random((n, cols)) < 0.5) * 0.1,
        "extremes of both signs": sign * (rng.random((n, cols)) < 0.5),
        "zeros of both signs below": np.where(rng.random((n, cols)) < 0.2, sign * 0.0, np.abs(plain)),
        "zeros of both signs above": np.where(rng.random((n, cols)) < 0.2, sign * 0.0, -np.abs(plain)),
    }
    return {name: values.astype(np.float32) for name, values in rows.items()}


def importances(rng: np.random.Generator, cols: int) -> dict[str, _Floats | None]:
    """None and float32 (cols,) importances of many kinds."""
    normal = rng.standard_normal(cols)
    columns = {
        "ones": np.ones(cols),
        "spread": np.exp(2 * normal),
        "spread widely": np.exp(8 * normal),
        "zero for half of the columns": (normal > 0) * 1.0,
        "zero for whole blocks": np.exp(normal) * (np.arange(cols) % 512 < 256),
        "zero": np.zeros(cols),
        "tiny": np.exp(normal) * 1e-30,
        "large": np.exp(normal) * 1e20,
        "denormal": np.full(cols, 1e-42),
    }
    return {"none": None} | {name: values.astype(np.float32) for name, values in columns.items()}


def assert_equal_bytes(quantize: c_kernels.Quantize, kind: GGMLQuantizationType, seed: int, rows: int) -> int:
    """Every input with every importance: the number of blocks compared."""
    rng, blocks = np.random.default_rng((int(kind), seed)), 0
    size = block_size(kind)[0]
    cols = size * int(rng.integers(1, 4 if size == 256 else 20))
    for weights_name, weights in importances(rng, cols).items():
        if weights is None and kind in c_kernels.NEED_IMPORTANCES:
            continue
        for name, values in inputs(rng, rows, cols).items():
            if out_of_range(kind, values, weights):
                continue
            made = np.empty((rows, row_bytes(kind, cols)), dtype=np.uint8)
            quantize(kind, values, weights, made)
            assert np.array_equal(made, ggml(kind, values, weights)), (name, weights_name, cols, seed)
            blocks += values.size // size
    return blocks


def out_of_range(kind: GGMLQuantizationType, rows: _Floats, weights: _Floats | None) -> bool:
    """Whether ggml would abort the process: a lattice type's error of these values overflows."""
    try:
        kernels._check_range(kind, rows, weights)
    except UnsupportedError:
        return kind in LATTICE_KINDS
    return False


def in_use(kind: GGMLQuantizationType, rows: _Floats, weights: _Floats | None, out: NDArray[np.uint8]) -> None:
    kernels.quantize_rows(kind, rows, weights, out)


@needs_compiler
def test_every_kernel_is_in_use_on_a_machine_with_a_compiler() -> None:
    own = kernels._c_kernels()
    assert own is not None
    for kind in c_kernels.KINDS:
        assert own.get(kind, weighted=False)
        assert own.get(kind, weighted=True)
    assert kernels.accelerated() == tuple(kind.name for kind in c_kernels.KINDS)


@needs_compiler
@against_ggml
@every_kind
def test_bytes_are_ggmls_for_every_input_and_importance(kind: GGMLQuantizationType) -> None:
    seeds = 1 if kind in LATTICE_KINDS else 2
    assert sum(assert_equal_bytes(in_use, kind, seed, rows=9) for seed in range(seeds)) > 1500 * seeds


@needs_compiler
@against_ggml
@pytest.mark.full
@every_kind
def test_bytes_are_ggmls_on_a_million_blocks(kind: GGMLQuantizationType) -> None:
    blocks, seed = 0, 100
    while blocks < 1_000_000:
        blocks += assert_equal_bytes(in_use, kind, seed, rows=60)
        seed += 1


@needs_compiler
@against_ggml
@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from([kind for kind in c_kernels.KINDS if kind not in _SLOW_TABLES]),
    rows=hnp.arrays(np.float32, (1, 256), elements=st.floats(-1e4, 1e4, width=32)),
    weights=st.none() | hnp.arrays(np.float32, (256,), elements=st.floats(0, 1e4, width=32)),
)
def test_bytes_are_ggmls_on_whatever_hypothesis_thinks_of(
    kind: GGMLQuantizationType, rows: _Floats, weights: _Floats | None
) -> None:
    assert np.array_equal(kernels.quantize_rows(kind, rows, weights), ggml(kind, rows, weights))


@needs_compiler
@against_ggml
@every_vector_kind
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_float_that_is_not_finite_is_noticed_wherever_ggmls_bytes_show_it(
    kind: GGMLQuantizationType, value: float
) -> None:
    for weights in (None, np.ones(512, np.float32)):
        rows = inputs(np.random.default_rng(0), 2, 512)["normal"]
        rows[1, 300] = value
        made, theirs = kernels.quantize_rows(kind, rows, weights), ggml(kind, rows, weights)
        assert not kernels.validate_rows(kind, made) or kernels.validate_rows(kind, theirs)
        assert np.array_equal(made[0], theirs[0])


@needs_compiler
@against_ggml
@every_vector_kind
def test_bytes_are_ggmls_for_the_largest_floats(kind: GGMLQuantizationType) -> None:
    rows = inputs(np.random.default_rng(0), 2, 512)["normal"]
    rows[1, 300] = 3e38
    for weights in (None, np.ones(512, np.float32)):
        assert np.array_equal(kernels.quantize_rows(kind, rows, weights), ggml(kind, rows, weights))


@needs_compiler
@pytest.mark.full
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the levels of x86-64")
@pytest.mark.parametrize("level", ["x86-64", "x86-64-v3", "x86-64-v4"])
def test_every_vector_width_makes_the_same_bytes(level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = Path("/proc/cpuinfo").read_text()
    if {"x86-64-v3": "avx2", "x86-64-v4": "avx512vl"}.get(level, "sse2") not in flags:
        pytest.skip(f"this processor is below {level}")
    command = ["cc", "-O2", "-ftree-vectorize", *compiled._FLAGS, f"-march={level}", f"-I{compiled.HEADERS}"]
    subprocess.run([*command, "-o", tmp_path / "k.so", *c_kernels.SOURCES, "-lm"], check=True)
    subprocess.run([*command, "-o", tmp_path / "iq.so", *c_kernels.LATTICE_SOURCES, "-lm"], check=True)
    lattice = ctypes.CDLL(str(tmp_path / "iq.so"))
    monkeypatch.setattr(c_kernels, "compiled", lambda *_, **__: lattice)
    own = c_kernels.CKernels(ctypes.CDLL(str(tmp_path / "k.so")), kernels._kernels().quantize)
    for kind in c_kernels.KINDS:
        for weighted in (False, True):
            assert own.get(kind, weighted=weighted)

        def quantize(
            kind: GGMLQuantizationType, rows: _Floats, weights: _Floats | None, out: NDArray[np.uint8]
        ) -> None:
            kernel = own.get(kind, weighted=weights is not None)
            assert kernel
            kernel(kind, rows, weights, out)

        if kind not in _SLOW_TABLES:  # `get` compared these with the recorded bytes
            assert_equal_bytes(quantize, kind, 7, rows=20)


@needs_compiler
@against_ggml
def test_a_kernel_whose_bytes_differ_is_not_used() -> None:
    def off_by_a_bit(
        kind: GGMLQuantizationType, rows: _Floats, weights: _Floats | None, out: NDArray[np.uint8]
    ) -> None:
        out[...] = ggml(kind, rows, weights)
        if kind.name == "Q4_K" and weights is not None:
            out[0, 0] ^= 1

    own = c_kernels.load(off_by_a_bit)
    assert own is not None
    assert own.get(tensor_type("q4_k"), weighted=False)
    assert own.get(tensor_type("q4_k"), weighted=True) is None
    assert own.get(tensor_type("q5_k"), weighted=True)
    assert own.get(tensor_type("q4_k"), weighted=False) is not None
    assert tensor_type("q4_k") not in own.kinds()


@needs_compiler
def test_the_clamping_of_newer_versions_of_ggml_is_recognised() -> None:
    """A library that clamps before it rounds is stood in for by the kernels themselves, told to do so."""
    library = compiled.compiled(*c_kernels.SOURCES, optimize=c_kernels._OPTIMIZE)
    older = c_kernels.CKernels(library, kernels._kernels().quantize)
    rows, weights = c_kernels.clamping_rows()
    made = {}
    for clamps_first in (0, 1):
        newer = c_kernels.CKernels(library, older._bound(tensor_type("q5_k"), clamps_first))
        assert newer._clamps_first == clamps_first
        kernel = newer.get(tensor_type("q5_k"), weighted=True)
        assert kernel
        made[clamps_first] = c_kernels._made(kernel, tensor_type("q5_k"), rows, weights)
    assert not np.array_equal(made[0], made[1])


def test_without_a_compiler_or_when_turned_off_the_library_does_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("nothing to test")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert c_kernels.load(never) is None
    monkeypatch.undo()
    monkeypatch.setenv("QUANTKIT_C_KERNELS", "0")
    assert c_kernels.load(never) is None


@needs_compiler
def test_source_that_does_not_compile_costs_speed_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "k_quants.c"
    broken.write_text("this is not C")
    monkeypatch.setattr(c_kernels, "SOURCES", (broken,))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert c_kernels.load(lambda *_: None) is None
    assert not list((tmp_path / "quantkit").glob("*.so"))


@against_ggml
@every_kind
def test_the_recorded_bytes_are_those_of_ggml_on_x86_64(kind: GGMLQuantizationType) -> None:
    def library(_: GGMLQuantizationType, rows: _Floats, weights: _Floats | None, out: NDArray[np.uint8]) -> None:
        kernels._kernels().quantize(kind, rows, weights, out)

    assert c_kernels.bytes_digest(library, kind) == c_kernels.X86_64_BYTES[kind]


@needs_compiler
def test_other_processors_use_the_kernels_by_the_recorded_bytes_not_by_their_own_ggml(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fused(kind: GGMLQuantizationType, rows: _Floats, weights: _Floats | None, out: NDArray[np.uint8]) -> None:
        out[...] = 255 - ggml(kind, rows, weights)

    kind = GGMLQuantizationType.Q4_0
    monkeypatch.setattr(c_kernels, "_X86_64", True)
    ours = c_kernels.load(fused)
    assert ours is not None and ours.get(kind, weighted=False) is None
    monkeypatch.setattr(c_kernels, "_X86_64", False)
    ours = c_kernels.load(fused)
    assert ours is not None and ours.get(kind, weighted=False) is not None
    monkeypatch.setitem(c_kernels.X86_64_BYTES, kind, "0" * 24)
    ours = c_kernels.load(fused)
    assert ours is not None and ours.get(kind, weighted=False) is None
