"""The option of `make snapshots`; processes that all tests share; the count of token ids, over all workers."""

import gc
import os
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from threadpoolctl import threadpool_limits

from quantkit import cli
from quantkit.chat import contained
from quantkit.llamacpp import session as sessions
from quantkit.recipes.bake import process as bake_process
from quantkit.system import memory, processor
from tests.helpers import token_memory
from tests.helpers.bake_steps import run_here
from tests.helpers.command import current_environment
from tests.helpers.forked import LLAMA_CHILD, start_process
from tests.helpers.llama_child import SharedChild
from tests.helpers.plots_drawn import perplexity_alone
from tests.helpers.quick_reader import quick_reader
from tests.helpers.render_child import ForkedChild
from tests.helpers.token_memory import remembered_tokens
from tests.tokenizer import tally

_usable_processors = processor.usable_processors
_ALLOCATIONS = 20_000
"""Allocations between two collections of young objects; Python's own number is 700."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-snapshots", action="store_true", help="rewrite tests/cli/snapshots")


def pytest_configure(config: pytest.Config) -> None:
    # a shell without job control starts background commands with SIGINT ignored, which what the tests start inherits
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for plugin in config.pluginmanager.get_plugins():
        if hasattr(plugin, "sendevent") and not config.option.durations:
            plugin.sendevent = partial(_send_result, plugin.sendevent)


def _send_result(send: Callable[..., None], name: str, **values: Any) -> None:
    """Send what pytest-xdist's main process counts. Of six messages for a test that passes, four say nothing new."""
    report = values.get("data") if name == "testreport" else None
    if name in ("logstart", "logfinish") or (report and report["when"] != "call" and report["outcome"] == "passed"):
        return
    send(name, **values)


@contextmanager
def shared_llama_child() -> Iterator[None]:
    """Short questions to llama.cpp go to one process; tests/llamacpp/test_session.py has the real one."""
    child = SharedChild()
    with (
        patch.object(sessions, "run_child", child.run),
        patch.object(sessions, "children_ready", lambda _count: nullcontext()),
    ):
        yield
    child.close()


@contextmanager
def llama_children_forked() -> Iterator[None]:
    """llama.cpp's children are forks of one that has loaded it; tests/llamacpp/test_session.py has the real ones."""
    forking = SimpleNamespace(**{**vars(subprocess), "Popen": partial(start_process, modules=LLAMA_CHILD)})
    with patch.object(sessions, "subprocess", forking):
        yield


@contextmanager
def forked_render_child() -> Iterator[None]:
    """Templates render in a fork of one interpreter; tests/chat/test_render.py has quantkit's own child."""
    child = ForkedChild()
    with patch.object(contained, "_child", child.run):
        yield
    child.close()


@contextmanager
def commands_made_once() -> Iterator[None]:
    """A command's options are made into a parser once, not for each command that a test runs."""
    with patch.object(cli, "load_command", cache(cli.load_command)):
        yield


@contextmanager
def bake_steps_here() -> Iterator[None]:
    """The commands of a bake run in this process; tests/recipes/test_bake_process.py has bake's own processes."""
    with patch.object(bake_process, "run_process", run_here):
        yield


@contextmanager
def fewer_plots() -> Iterator[None]:
    """Commands draw one kind of plot; tests/report and tests/cli/test_measure.py draw all."""
    with perplexity_alone():
        yield


@contextmanager
def tokens_made_once() -> Iterator[None]:
    """The default calibration text is tokenized once with each tokenizer."""
    with remembered_tokens():
        yield


@contextmanager
def blas_of_one_thread() -> Iterator[None]:
    """Each worker has a core. Threads of OpenBLAS wait for each other by spinning, which made some tests five times
    as long. Processes that tests start have the threads that they have for users.
    """
    with threadpool_limits(1, "blas"):
        yield


@contextmanager
def one_core() -> Iterator[None]:
    """Commands of this process have one thread by default: on models this small, threads wait for each other."""
    with patch.object(processor, "usable_processors", lambda: 1):
        yield


@contextmanager
def reader_of_plain_arrays() -> Iterator[None]:
    """The gguf package's reader, without np.memmap; tests/helpers/test_quick_reader.py compares it with its own."""
    with quick_reader():
        yield


@contextmanager
def nothing_flushed() -> Iterator[None]:
    """No file of a test outlives the machine, and each flush takes milliseconds in which a worker waits.

    tests/full/test_faults.py lets each flush fail, in processes of their own.
    """
    with ExitStack() as stack:
        for name in ("fsync", "fdatasync"):
            if hasattr(os, name):
                stack.enter_context(patch.object(os, name, lambda descriptor: None))
        yield


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """This process keeps memory that commands free: a return walks its whole heap, and the next command faults it in.

    Memory is measured in processes of their own.
    """
    with patch.object(memory, "return_freed", lambda: None):
        yield


@pytest.fixture(scope="session", autouse=True)
def shared_by_all_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """All of the above in one fixture: pytest looks up each one anew for each of thousands of tests."""
    base = tmp_path_factory.getbasetemp()
    # pytest-xdist gives each worker a folder in one of the run
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "token-memory"
    shared.mkdir(exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, {token_memory.FOLDER: str(shared)}))
        for part in (
            shared_llama_child,
            llama_children_forked,
            forked_render_child,
            commands_made_once,
            bake_steps_here,
            fewer_plots,
            tokens_made_once,
            blas_of_one_thread,
            one_core,
            reader_of_plain_arrays,
            nothing_flushed,
            freed_memory_kept,
        ):
            stack.enter_context(part())
        yield


@pytest.fixture
def blas_of_many_threads() -> Iterator[None]:
    """OpenBLAS as in a user's process, for tests that its threads change no byte."""
    with threadpool_limits(4, "blas"):
        yield


@pytest.fixture
def every_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cores that this process has, for tests of their number."""
    monkeypatch.setattr(processor, "usable_processors", _usable_processors)


@pytest.fixture(autouse=True)
def unchanged_environment() -> Iterator[None]:
    """No test leaves another environment: later commands would start processes of their own, without patches."""
    before = current_environment()
    yield
    assert current_environment() == before


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Collect tests without the garbage collector, which would look at a million new objects again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Spare the garbage collector the million objects of the collected tests, which live until the end.

    Without it, it walks over them again and again: a tenth of the suite's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS)


def pytest_sessionfinish(session: pytest.Session) -> None:
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["token_ids"] = tally.packed()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    tally.add(getattr(node, "workeroutput", {}).get("token_ids"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in tally.summary():
        terminalreporter.write_line(line)
