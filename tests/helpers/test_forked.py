"""A forked process is one: arguments, environment, folder, streams, signals, exit code."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from quantkit.llamacpp.session import LlamaSession
from tests.helpers.command import command
from tests.helpers.forked import Forked, _server, forks, run_process, start_process
from tests.helpers.llama_child import start_child
from tests.helpers.tiny import tiny_llama
from tests.measurement.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.skipif(not forks(), reason="this system does not fork")
TELL = "import os, sys; print(sys.argv[1:], os.environ['WORD'], os.getcwd()); print('error', file=sys.stderr)"


def test_arguments_environment_folder_and_streams_are_its_own(tmp_path: Path) -> None:
    words = [sys.executable, "-c", TELL, "a", "b c"]
    done = run_process(words, cwd=tmp_path, env={**os.environ, "WORD": "é"}, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"['a', 'b c'] é {tmp_path}\n", "error\n")


def test_a_variable_that_is_read_at_the_start_gives_a_new_process() -> None:
    words = [sys.executable, "-c", "import sys; print(sys.flags.utf8_mode)"]
    assert isinstance(start_process(words, stdout=subprocess.DEVNULL), Forked)
    assert not forks({**os.environ, "PYTHONUTF8": "1"})
    assert run_process(words, env={**os.environ, "PYTHONUTF8": "1"}, text=True).stdout == "1\n"


def test_it_reads_what_is_written_to_it() -> None:
    done = run_process([sys.executable, "-c", "import sys; print(sys.stdin.read().upper())"], input="abc", text=True)
    assert done.stdout == "ABC\n"


@pytest.mark.parametrize(
    ("code", "returned"),
    [("raise SystemExit(7)", 7), ("1 / 0", 1), ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9)],
)
def test_the_exit_code_is_that_of_a_new_process(code: str, returned: int) -> None:
    words = [sys.executable, "-c", code]
    started = subprocess.run(words, capture_output=True, text=True, check=False)
    done = run_process(words, text=True)
    assert done.returncode == started.returncode == returned
    assert done.stderr.splitlines()[-1:] == started.stderr.splitlines()[-1:]


def test_it_gets_signals_and_ends_once() -> None:
    words = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"]
    with Forked(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == process.poll() == -signal.SIGTERM


def test_ctrl_c_ends_a_fork_and_not_the_interpreter_that_forks() -> None:
    words = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"]
    with Forked(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        # a terminal sends it to both
        os.kill(_server((), os.environ)._process.pid, signal.SIGINT)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT
    assert run_process([sys.executable, "-c", "print(1)"], text=True).stdout == "1\n"


def test_a_command_answers_as_in_a_new_process(tmp_path: Path) -> None:
    words = command("inspect", tiny_llama(tmp_path / "model"))
    started = subprocess.run(words, capture_output=True, check=False)
    done = run_process(words)
    assert (done.returncode, done.stdout, done.stderr) == (started.returncode, started.stdout, started.stderr)
    assert done.returncode == 0 and done.stdout


def test_a_reader_that_goes_away_is_seen() -> None:
    with Forked(command("--help"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) in (0, 1)


def test_a_child_of_llama_cpp_is_forked_and_answers(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", dtype="f32", variant="mistral")
    model = write_tiny_gguf(folder, tmp_path / "tiny.gguf")
    with LlamaSession(model) as session:
        assert isinstance(session._child, Forked)
        request = {"task": "vocab_tokens", "model": str(model), "texts": ["The lazy dog sleeps."]}
        assert session.ask(request) == start_child(request, model)
        assert session.alive
    assert not session.alive


def test_threads_get_the_processes_that_they_asked_for() -> None:
    def told(number: int) -> str:
        return str(run_process([sys.executable, "-c", f"print({number})"], text=True).stdout)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(told, range(12))) == [f"{number}\n" for number in range(12)]
