"""quantkit's own K-quant kernels: ggml's bytes or not at all."""

import ctypes
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from quantkit import private_cache
from quantkit.gguf import c_kernels, kernels
from quantkit.gguf.types import row_bytes

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler: the library's own kernels are used"
)


def ggml(kind: GGMLQuantizationType, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The library itself, past the kernels under test."""
    out = np.empty((len(rows), row_bytes(kind, rows.shape[1])), dtype=np.uint8)
    kernels._kernels().quantize(kind, rows, None, out)
    return out


@needs_compiler
def test_every_kernel_is_in_use_on_a_machine_with_a_compiler() -> None:
    assert kernels.accelerated() == tuple(kind.name for kind in c_kernels.KINDS)


@needs_compiler
@pytest.mark.parametrize("kind", c_kernels.KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0])
def test_bytes_are_ggmls_on_a_million_weights(kind: GGMLQuantizationType, spread: float) -> None:
    rng = np.random.default_rng(int(kind))
    scale = np.exp(rng.normal(0, spread, (512, 128))).repeat(16, axis=1)
    rows = (rng.standard_normal((512, 2048)) * scale).astype(np.float32)
    assert np.array_equal(kernels.quantize_rows(kind, rows), ggml(kind, rows))


@needs_compiler
@pytest.mark.parametrize("kind", c_kernels.KINDS, ids=lambda kind: kind.name)
@settings(max_examples=150, deadline=None)
@given(rows=hnp.arrays(np.float32, (1, 256), elements=st.floats(-1e4, 1e4, width=32)))
def test_bytes_are_ggmls_on_whatever_hypothesis_thinks_of(
    kind: GGMLQuantizationType, rows: NDArray[np.float32]
) -> None:
    assert np.array_equal(kernels.quantize_rows(kind, rows), ggml(kind, rows))


@needs_compiler
def test_a_kernel_whose_bytes_differ_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_a_bit(kind: GGMLQuantizationType, rows: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
        out[...] = ggml(kind, rows)
        if kind.name == "Q4_K":
            out[0, 0] ^= 1

    assert set(c_kernels.load(off_by_a_bit)) == set(c_kernels.KINDS) - {GGMLQuantizationType.Q4_K}


def test_without_a_compiler_or_when_turned_off_the_library_does_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("nothing to test")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert c_kernels.load(never) == {}
    monkeypatch.undo()
    monkeypatch.setenv("QUANTKIT_C_KERNELS", "0")
    assert c_kernels.load(never) == {}


@needs_compiler
def test_source_that_does_not_compile_costs_speed_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "c_kernels.c"
    broken.write_text("this is not C")
    monkeypatch.setattr(c_kernels, "SOURCE", broken)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert c_kernels.load(lambda *_: None) == {}
    assert not list((tmp_path / "quantkit").glob("*.so"))


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The library in a cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    c_kernels.compiled(c_kernels.SOURCE)
    (library,) = (tmp_path / "quantkit").glob("*.so")
    return library


@needs_compiler
def test_the_library_is_compiled_once_into_the_cache(cached: Path) -> None:
    stamp = cached.stat().st_mtime_ns
    assert c_kernels.compiled(c_kernels.SOURCE).quantkit_q4_k
    assert cached.stat().st_mtime_ns == stamp
    assert ctypes.CDLL(str(cached)).quantkit_q4_k


@needs_compiler
@pytest.mark.parametrize("damage", ["truncated", "replaced", "writable by others", "a link", "of another user"])
def test_a_library_that_others_may_have_written_is_compiled_again(
    cached: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted library would run as the user; a truncated one would end the process with SIGBUS."""
    sound = cached.read_bytes()
    if damage in ("truncated", "replaced"):
        cached.unlink()  # this process has the file mapped: writing into it would damage the process
    if damage == "truncated":
        cached.write_bytes(sound[: len(sound) // 2])
    elif damage == "replaced":
        cached.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    elif damage == "writable by others":
        cached.chmod(0o666)
    elif damage == "a link":
        cached.rename(cached.with_name("elsewhere"))
        cached.symlink_to("elsewhere")
    else:
        monkeypatch.setattr(private_cache.os, "geteuid", lambda: cached.stat().st_uid + 1)
        assert c_kernels._load_trusted(cached) is None
        return
    assert c_kernels._load_trusted(cached) is None
    assert c_kernels.compiled(c_kernels.SOURCE).quantkit_q4_k
    assert not cached.is_symlink()
    assert cached.read_bytes() == sound
    assert cached.stat().st_mode & 0o022 == 0


@needs_compiler
def test_a_cache_folder_that_others_can_write_is_not_used(cached: Path) -> None:
    cached.parent.chmod(0o777)
    before = sorted(cached.parent.iterdir())
    assert c_kernels.compiled(c_kernels.SOURCE).quantkit_q4_k
    assert sorted(cached.parent.iterdir()) == before
    assert private_cache.private_cache_folder() is None


@needs_compiler
def test_without_a_home_the_kernels_are_compiled_outside_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(private_cache.Path, "home", no_home)
    assert private_cache.private_cache_folder() is None
    assert c_kernels.compiled(c_kernels.SOURCE).quantkit_q4_k
