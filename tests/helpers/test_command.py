"""`quantkit` of a test runs in the test's process, unless the test changes the environment."""

from pathlib import Path

import pytest

from tests.helpers import command
from tests.helpers.tiny import tiny_llama


def refuse_process(*_words: object, **_options: object) -> command.Answer:
    raise AssertionError("a new process was started")


def test_a_command_after_a_conversion_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(tmp_path / "model", layers=1, hidden=32, intermediate=64)
    # AWQ imports every library that a conversion needs
    first = command.quantkit("awq", model, "--group-size", "-1", "--samples", "2", "--seq-len", "16", "-o", tmp_path)
    assert first.code == 0, first.stderr
    monkeypatch.setattr(command, "quantkit_forked", refuse_process)
    assert command.quantkit("inspect", model).code == 0


def test_a_changed_environment_starts_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "quantkit_forked", refuse_process)
    monkeypatch.setenv("QUANTKIT_OF_A_TEST", "1")
    with pytest.raises(AssertionError, match="a new process"):
        command.quantkit("inspect", tmp_path)
