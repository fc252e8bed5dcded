"""Every command: its summary, what its start loads, and its process: pipe, signal, exit code."""

import inspect
import re
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from quantkit.cli import COMMANDS, load_command
from tests.helpers.command import command, quantkit_forked
from tests.helpers.forked import start_process

HEAVY = re.compile(r"(numpy|huggingface_hub|torch|quantkit\.(stream|measurement))\b")
LIGHT = tuple(name for name in COMMANDS if name != "bake")  # a recipe is read by a schema of types

WAITING = """
import functools, importlib, sys, time
from quantkit.cli import main

module = importlib.import_module("quantkit.cli." + sys.argv[1])
function = getattr(module, sys.argv[1])

@functools.wraps(function)
def wait(*_, **__):
    print("waiting", flush=True)
    time.sleep(120)

setattr(module, sys.argv[1], wait)
main()
"""
WORDS = {
    "convert": ("-t", "q8_0"),
    "gguf": ("-t", "q8_0"),
    "imatrix": ("-o", "out.gguf"),
    "lora": ("--base", "model"),
    "measure": ("model", "--text", "model"),
    "ollama": ("--name", "me/model"),
}
"""What a command needs beside its source."""


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_in_the_list_is_the_first_line_of_the_commands_help(name: str) -> None:
    function = getattr(import_module(f"quantkit.cli.{name}"), name)
    assert (inspect.getdoc(function) or "").splitlines()[0] == COMMANDS[name]


def test_an_option_means_one_thing_in_every_command() -> None:
    meanings: dict[str, set[tuple[str | None, ...]]] = {}
    for name in COMMANDS:
        for parameter in load_command(name).params:
            for flag in parameter.opts:
                meanings.setdefault(flag, set()).add((parameter.name, getattr(parameter, "help", None)))
    shared = ("--debug", "--format", "--license", "--device", "--threads", "--max-ram", "--rpc", "--dry-run", "--force")
    assert {flag: len(meanings[flag]) for flag in (*shared, "--offline", "-p")} == dict.fromkeys(
        (*shared, "--offline", "-p"), 1
    )
    # measure takes a list of numbers, the other commands one
    assert {meaning[0] for meaning in meanings["--gpu-layers"]} == {"gpu_layers"}
    short = {flag: {meaning[0] for meaning in options} for flag, options in meanings.items() if len(flag) == 2}
    assert {flag: len(names) for flag, names in short.items()} == dict.fromkeys(short, 1)


@pytest.mark.parametrize("words", [("--help",), ("--version",), *((name, "--help") for name in LIGHT)], ids=" ".join)
def test_help_starts_without_numpy_hub_client_or_calibration(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "quantkit", *words], capture_output=True, text=True, check=True
    )
    modules = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines()]
    assert "quantkit.cli.errors" in modules
    assert [name for name in modules if HEAVY.match(name)] == []


@pytest.mark.parametrize("name", ["", *COMMANDS], ids=lambda name: name or "quantkit")
def test_a_reader_that_goes_away_is_not_an_error_worth_a_word(name: str) -> None:
    process = start_process(
        command(*filter(None, [name]), "--help"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()  # as `| head -0` does: every write fails
    assert process.stderr.read() == ""
    assert process.wait(60) in (0, 1)
    process.stderr.close()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_option_is_exit_code_2_of_the_process(name: str) -> None:
    answer = quantkit_forked(name, "--no-such-option")
    assert (answer.code, answer.stdout) == (2, "")
    assert "--no-such-option" in answer.stderr and "Traceback" not in answer.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_is_exit_code_130_and_one_sentence(name: str, tmp_path: Path) -> None:
    """The command's own function is replaced by one that waits: all around it is the real process."""
    (tmp_path / "model").write_text("")
    words = ("model", *WORDS.get(name, ())) if name != "termux" else ("--model", "me/model")
    process = start_process(
        [sys.executable, "-c", WAITING, name, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n", process.communicate()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert stdout == b"" and stderr.startswith(b"quantkit: interrupted") and stderr.count(b"\n") == 1, stderr
