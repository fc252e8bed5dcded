"""-o names a folder or a file that cannot be one: every command that has it refuses it before any work."""

from pathlib import Path

import pytest

from quantkit.cli import COMMANDS, load_command
from tests.helpers.command import quantkit

METAVARS = {
    name: option.metavar for name in COMMANDS for option in load_command(name).params if option.name == "output"
}


@pytest.mark.parametrize("command", METAVARS)
def test_an_output_that_cannot_be_one_is_refused_before_a_missing_source(command: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    answer = quantkit(command, "-o", file / "out" / "further")
    where = f"quantkit: -o {file}/out/further: {file}"
    assert (answer.code, answer.sentence) == (2, f"{where} is a file, not a folder; choose another folder with -o")
    if METAVARS[command] == "DIR":
        words = f"-o {file} is a file, not a folder; choose another folder with -o"
        assert quantkit(command, "-o", file).sentence == f"quantkit: {words}"
    else:
        words = f"-o {tmp_path} is a folder; name a file in it, such as {tmp_path}/NAME"
        assert quantkit(command, "-o", tmp_path).sentence == f"quantkit: {words}"
    assert file.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_commands_are_those_that_write() -> None:
    folders = {"convert", "gguf", "awq", "gptq", "lora", "measure", "ollama", "bake"}
    assert {name for name, metavar in METAVARS.items() if metavar == "DIR"} == folders
    assert {name for name, metavar in METAVARS.items() if metavar == "FILE"} == {"imatrix", "termux", "card"}
