"""A fault of the machine during a check says nothing about the output: the partial stays, and a rerun resumes."""

import errno
import hashlib
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import CheckpointError, PassingError, QuantkitError
from quantkit.verify import quantized, running
from quantkit.verify.check import guard
from tests.helpers.command import quantkit_here
from tests.helpers.tiny import tiny_llama

FEW = ("--samples", "8", "--seq-len", "32", "--raw", "--group-size", "32")


def raising(error: BaseException, cause: BaseException | None = None) -> Any:
    def run(*_: object, **__: object) -> str:
        if cause is None:
            raise error
        try:
            raise cause
        except type(cause) as caught:
            raise error from caught

    return run


@pytest.mark.parametrize("cause", [OSError(errno.EIO, "Input/output error"), MemoryError(), OSError(errno.EMFILE, "x")])
def test_a_check_that_the_machine_ended_is_not_a_failed_one(cause: BaseException) -> None:
    for run in (raising(cause), raising(CheckpointError("cannot read it"), cause)):
        with pytest.raises(PassingError, match="run the same command again"):
            guard("rows", run)


@pytest.mark.parametrize("cause", [None, FileNotFoundError(errno.ENOENT, "x"), ValueError("x"), OSError("not a model")])
def test_a_fault_of_the_output_is_a_failed_check(cause: BaseException | None) -> None:
    assert guard("rows", raising(QuantkitError("wrong"), cause)).status == "failed"


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "quantkit.json"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize(
    ("module", "name"),
    [(quantized, "_structure"), (quantized, "_rows"), (quantized, "_folder_logits"), (running, "correlations")],
)  # fmt: skip
def test_too_little_memory_in_a_check_keeps_the_partials_and_the_rerun_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    model = tiny_llama(tmp_path / "model", hidden=64, intermediate=96)
    words = ("convert", model, "-t", "awq", "-t", "q8_0", *FEW, "-o")
    assert quantkit_here(*words, tmp_path / "undisturbed").code == 0
    with monkeypatch.context() as patched:
        patched.setattr(module, name, raising(MemoryError()))
        answer = quantkit_here(*words, tmp_path / "out")
    assert answer.code == 1 and "memory" in answer.sentence, answer.stderr
    assert (tmp_path / "out" / "model-AWQ.partial").exists()
    assert not list((tmp_path / "out").rglob("*.failed"))
    again = quantkit_here(*words, tmp_path / "out")
    assert again.code == 0, again.stderr
    assert hashes(tmp_path / "out") == hashes(tmp_path / "undisturbed")
