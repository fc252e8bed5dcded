"""`quantkit run` as a user meets it: one answer, a pipe, a conversation at a terminal, bad input."""

import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.command import command, quantkit
from tests.helpers.forked import run_process
from tests.helpers.tiny import tiny_llama

GREEDY = ("--temperature", "0", "--ctx", "256", "-n", "8")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    tiny_llama(folder / "model", variant="llama3", dtype="f32")
    assert quantkit("gguf", "model", "-t", "f32", "--chat-template", "chatml", cwd=folder).code == 0
    (folder / "model-GGUF" / "model-F32.gguf").rename(folder / "model.gguf")
    assert quantkit("gguf", "model", "-t", "f32", "--chat-template", "none", cwd=folder).code == 0
    (folder / "model-GGUF" / "model-F32.gguf").rename(folder / "plain.gguf")
    (folder / "text.gguf").write_text("this is no GGUF")
    (folder / "cut.gguf").write_bytes((folder / "model.gguf").read_bytes()[:-100_000])
    return folder


def test_the_answer_alone_goes_to_stdout_however_it_is_asked(here: Path) -> None:
    answer = quantkit("run", "model.gguf", "-p", "Hello", *GREEDY, cwd=here)
    assert answer.code == 0, answer.stderr
    assert "8 tokens, " in answer.stderr and "--max-tokens reached" in answer.stderr
    document = json.loads(quantkit("run", "model.gguf", "-p", "Hello", *GREEDY, "--format", "json", cwd=here).stdout)
    assert answer.stdout == document["answer"] + "\n" and document["ended"] == "length" and document["tokens"] == 8
    piped = run_process(command("run", "model.gguf", *GREEDY), input=b"Hello\n", cwd=here)
    assert piped.stdout.decode() == answer.stdout


@pytest.mark.parametrize("strict", ["utf-8:strict", "utf-8:surrogateescape"])
def test_a_prompt_that_is_not_utf8_is_one_sentence(here: Path, strict: str) -> None:
    words = command("run", "model.gguf", *GREEDY)
    piped = run_process(words, input=b"caf\xe9\n", cwd=here, env={**os.environ, "PYTHONIOENCODING": strict})
    assert piped.returncode == 2 and not piped.stdout
    assert b"standard input is not UTF-8 text; pass the prompt as UTF-8" in piped.stderr


def test_a_model_without_a_template_goes_on_with_the_text_and_says_so(here: Path) -> None:
    plain = quantkit("run", "plain.gguf", "-p", "Hello", *GREEDY, cwd=here)
    assert plain.code == 0 and "has no chat template" in plain.stderr
    raw = quantkit("run", "model.gguf", "-p", "Hello", *GREEDY, "--raw", cwd=here)
    assert raw.stdout == plain.stdout and "template" not in raw.stderr


@contextmanager
def at_a_terminal(here: Path, *words: str) -> Iterator["Terminal"]:
    leader, follower = pty.openpty()
    running = subprocess.Popen(
        command("run", "model.gguf", *words),
        cwd=here,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(follower)
    try:
        yield Terminal(leader, running)
    finally:
        running.kill()
        running.wait()
        os.close(leader)


class Terminal:
    def __init__(self, leader: int, running: "subprocess.Popen[bytes]") -> None:
        self.leader, self.running, self.printed = leader, running, ""

    def wait(self, text: str) -> str:
        """What was printed up to `text`."""
        end = time.monotonic() + 60
        while text not in self.printed:
            assert time.monotonic() < end, self.printed
            try:
                self.printed += os.read(self.leader, 4096).decode("utf-8", "replace")
            except OSError:
                pytest.fail(f"the command left: {self.printed}")
        before, _, self.printed = self.printed.partition(text)
        return before

    def begin_answer(self, text: str) -> None:
        """Type `text` and wait for the first piece of its answer: from then on Ctrl-C ends the answer."""
        self.type(text + "\n")
        self.wait(text)
        self.wait("\n")
        end = time.monotonic() + 60
        while not self.printed:
            assert time.monotonic() < end
            self.printed += os.read(self.leader, 4096).decode("utf-8", "replace")

    def type(self, text: str) -> None:
        os.write(self.leader, text.encode())


def test_a_conversation_at_a_terminal(here: Path) -> None:
    with at_a_terminal(here, "--temperature", "0", "--ctx", "32768", "-n", "30000") as terminal:
        terminal.wait(">>> ")
        terminal.type("/help\n")
        assert "/clear" in terminal.wait(">>> ")
        terminal.begin_answer("Hello")
        os.killpg(terminal.running.pid, signal.SIGINT)  # Ctrl-C: the answer ends, not the conversation
        assert "stopped" in terminal.wait(">>> ")
        terminal.type("/nothing\n")
        assert "unknown command /nothing" in terminal.wait(">>> ")
        terminal.type("/clear\n")
        terminal.wait(">>> ")
        terminal.type('"""two\n')
        terminal.wait("... ")
        terminal.begin_answer('lines"""')
        os.killpg(terminal.running.pid, signal.SIGINT)
        terminal.wait(">>> ")
        terminal.type("/bye\n")
        assert terminal.running.wait(60) == 0


BAD = {
    "no such file": (["nowhere.gguf", "-p", "x"], "nowhere.gguf"),
    "no GGUF": (["text.gguf", "-p", "x"], "text.gguf"),
    "a cut GGUF": (["cut.gguf", "-p", "x"], "cut.gguf"),
    "a folder": (["model", "-p", "x"], "model"),
    "a prompt without its option": (
        ["model.gguf", "hello", "you"],
        "unexpected argument 'hello'; pass the prompt with -p 'hello you'",
    ),
    "an empty prompt": (["model.gguf", "-p", "  "], "the prompt is empty"),
    "layers that are no number": (["model.gguf", "-p", "x", "--gpu-layers", "some"], "auto, all, or a number"),
    "a prompt longer than the context": (["model.gguf", "-p", "word " * 900, *GREEDY], "larger --ctx"),
    "no server there": (["model.gguf", "-p", "x", "--rpc", "127.0.0.1:9"], "RPC"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence(here: Path, case: str) -> None:
    words, sentence = BAD[case]
    answer = quantkit("run", *words, cwd=here)
    assert answer.code in (1, 2) and sentence in answer.sentence
    assert answer.stdout == ""


@pytest.mark.parametrize(
    ("model", "sentence"), [("nowhere.gguf", b"cannot read nowhere.gguf"), ("model.gguf", b"the prompt is empty")]
)
def test_an_empty_pipe_is_refused_after_a_missing_model(here: Path, model: str, sentence: bytes) -> None:
    piped = run_process(command("run", model), cwd=here)
    assert piped.returncode in (1, 2) and sentence in piped.stderr
    assert piped.stdout == b""
