"""A machine that lacks something, disk, memory, threads or a package: one sentence, and nothing under a final name."""

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

from quantkit.cli.errors import explain
from tests.helpers.command import Answer, assert_nothing_final, command, quantkit
from tests.helpers.tiny import tiny_llama


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("sound") / "model", variant="llama3", shards=2)


def test_a_name_that_is_too_long_is_shown_in_part(sound: Path, tmp_path: Path) -> None:
    answer = quantkit("gguf", sound, "-t", "q4_0", "-o", ".", "--name", "x" * 300, cwd=tmp_path)
    assert answer.code == 1
    assert answer.sentence.endswith("xxx...: File name too long; use a shorter name") and len(answer.sentence) < 120
    assert_nothing_final(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(sound: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        answer = quantkit("gguf", sound, "-o", tmp_path)
    finally:
        tmp_path.chmod(0o700)
    assert answer.code == 1
    assert "-o" in answer.sentence


def in_a_small_tmpfs(sound: Path, mount: Path, size: str, *words: str) -> Answer:
    """Run with a tmpfs of `size` at `mount`, in a mount namespace of its own."""
    script = f'mount -t tmpfs -o size={size} none "{mount}" && exec "$@"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *command("gguf", sound, "-o", mount, "--no-logits", *words)],
        capture_output=True,
        text=True,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def test_a_full_disk_is_known_before_work_starts(sound: Path, tmp_path: Path) -> None:
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("this system gives no mount namespaces")
    answer = in_a_small_tmpfs(sound, tmp_path, "1m", "-t", "q8_0")
    assert answer.code == 1
    assert "free" in answer.sentence
    assert in_a_small_tmpfs(sound, tmp_path, "4m", "-t", "q8_0").code == 0


@pytest.mark.parametrize("megabytes", [60, 250, 410, 480])
def test_a_small_address_space_is_one_sentence(sound: Path, tmp_path: Path, megabytes: int) -> None:
    """OpenBLAS ended the process while it was loaded, or hung."""
    limited = ["sh", "-c", f'ulimit -v {megabytes * 1000}; exec "$@"', "sh", *command("gguf", sound, "-o", tmp_path)]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=60, check=False)
    answer = Answer(done.returncode, done.stdout, done.stderr)
    assert answer.code == 2 and "ulimit -v" in answer.sentence


def test_a_thread_that_cannot_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("quantkit.cli.app", refuse)
    answer = quantkit("inspect", tmp_path)
    assert answer.code == 1 and "use fewer --threads" in answer.sentence


@pytest.mark.parametrize("rust_threads", ["1", "2000"])
def test_too_little_address_space_sets_nothing_aside(sound: Path, tmp_path: Path, rust_threads: str) -> None:
    """The stacks of 2000 threads take 4 GB: the pool of the tokenizers library panics."""
    limited = ["sh", "-c", 'ulimit -v 600000; exec "$@"', "sh", *command("gguf", sound, "-o", tmp_path)]
    # a backtrace may find no memory either, and then the C library ends the program
    environment = {**os.environ, "RAYON_NUM_THREADS": rust_threads, "RUST_BACKTRACE": "0"}
    done = subprocess.run(limited, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert not list(tmp_path.rglob("*.failed")), done.stderr
    if rust_threads == "2000":
        assert done.returncode == 1
        assert "the tokenizers library got no memory or no thread; raise the limits" in done.stderr
    else:
        assert done.returncode in (0, 1) and "unexpected" not in done.stderr, done.stderr


FULL = {
    "CUDA out of memory. Tried to allocate 2.00 GiB.": "OutOfMemoryError",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": "RuntimeError",
    "Triton Error [CUDA]: out of memory": "RuntimeError",
}


@pytest.mark.parametrize("text", FULL)
def test_a_full_gpu_is_one_sentence(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By the name of torch's class, because torch is not imported where it is not used; libraries of CUDA use words."""
    full = type(FULL[text], (RuntimeError,), {"__module__": "torch"})
    with pytest.raises(SystemExit) as ended, explain():
        raise full(text)
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        "quantkit: the GPU's memory is full; end other programs on it, or add --device cpu\n"
    )


def test_a_required_package_that_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), explain():
        raise ModuleNotFoundError("No module named 'jinja2.sandbox'", name="jinja2.sandbox")
    assert capsys.readouterr().err == (
        "quantkit: the Python package jinja2 is not installed, which quantkit requires; run: pip install quantkit\n"
    )


def test_logits_that_are_requested_need_llama_cpp(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    absent = ("llama_cpp", "xllamacpp")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in absent else find(name, *more))
    answer = quantkit("gguf", sound, "-t", "q8_0", "--logits", "-o", tmp_path)
    assert "needs llama.cpp; run: pip install 'quantkit[run]'" in answer.sentence
    assert not list(tmp_path.iterdir())
