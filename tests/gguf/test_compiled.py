"""Compiled C code is kept in the user's cache folder and loaded only when nobody else can have written it."""

import ctypes
import shutil
from pathlib import Path

import pytest

from quantkit import private_cache
from quantkit.gguf.compiled import compiled, load_trusted

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return 42; }")
    return path


@pytest.fixture
def cached(source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The library in a cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled(source)
    (library,) = (tmp_path / "quantkit").glob("*.so")
    return library


@needs_compiler
def test_the_library_is_compiled_once_into_the_cache(source: Path, cached: Path) -> None:
    stamp = cached.stat().st_mtime_ns
    assert compiled(source).answer()
    assert cached.stat().st_mtime_ns == stamp
    assert ctypes.CDLL(str(cached)).answer()


@needs_compiler
@pytest.mark.parametrize("damage", ["truncated", "replaced", "writable by others", "a link", "of another user"])
def test_a_library_that_others_may_have_written_is_compiled_again(
    source: Path, cached: Path, damage: str, monkeypatch: pytest.MonkeyPatch
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
        assert load_trusted(cached) is None
        return
    assert load_trusted(cached) is None
    assert compiled(source).answer()
    assert not cached.is_symlink()
    assert cached.read_bytes() == sound
    assert cached.stat().st_mode & 0o022 == 0


@needs_compiler
def test_a_cache_folder_that_others_can_write_is_not_used(source: Path, cached: Path) -> None:
    cached.parent.chmod(0o777)
    before = sorted(cached.parent.iterdir())
    assert compiled(source).answer()
    assert sorted(cached.parent.iterdir()) == before
    assert private_cache.private_cache_folder() is None


@needs_compiler
def test_without_a_home_the_code_is_compiled_outside_the_cache(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(private_cache.Path, "home", no_home)
    assert private_cache.private_cache_folder() is None
    assert compiled(source).answer()
