"""Children and limits by the calls of each system; what is not Linux runs here with its branch chosen by hand."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from quantkit.system import memory, processes

HUNGRY = "held = bytearray(80 << 20); held[::4096] = b'x' * len(held[::4096]); raise SystemExit(5)"


def test_the_exit_code_and_the_peak_of_a_child_are_those_of_the_kernel() -> None:
    # in a small process: until it runs its program, a child has the memory of its parent
    waiting = "import subprocess, sys\nfrom quantkit.system import processes\n"
    waiting += f"print(*processes.wait(subprocess.Popen([sys.executable, '-c', {HUNGRY!r}])))"
    done = subprocess.run([sys.executable, "-c", waiting], capture_output=True, text=True, check=True)
    code, peak = map(int, done.stdout.split())
    assert code == 5
    assert 80 << 20 < peak < 400 << 20


def test_without_wait4_the_peak_comes_from_the_handle_of_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "wait4")
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
    monkeypatch.setattr(child, "_handle", 1234, raising=False)
    monkeypatch.setattr(memory, "counters_of_handle", lambda handle: SimpleNamespace(peak_working_set=handle * 1000))
    assert processes.wait(child) == (7, 1234000)


@pytest.mark.parametrize("code", [130, -2, 0xC000013A])
def test_an_interrupted_child_is_recognized_on_every_system(code: int) -> None:
    assert processes.was_interrupted(code)
    assert not processes.was_killed(code)


def test_a_killed_child_is_recognized_and_without_sigkill_none_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.was_killed(-9)
    assert not any(map(processes.was_killed, (0, 9, None)))
    monkeypatch.delattr(signal, "SIGKILL")
    assert not any(map(processes.was_killed, (0, -9, None)))


def test_only_linux_kills_a_child_with_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(processes.dies_with_this_process()["preexec_fn"])
    monkeypatch.setattr(sys, "platform", "win32")
    assert processes.dies_with_this_process() == {}


@pytest.mark.parametrize("system", ["darwin", "win32"])
@pytest.mark.parametrize("work", ["while True: pass", "held = [bytearray(8 << 20) for _ in range(1000)]"])
def test_a_process_beyond_its_limits_ends(system: str, work: str) -> None:
    code = f"import sys, os\nfrom quantkit.system import processes\nsys.platform = {system!r}\n"
    if system == "win32":
        code += "sys.modules['resource'] = None\n"
    if system == "darwin":
        code += "processes.memory.resident = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096\n"
    code += f"processes.limit_this_process(1, 300 << 20)\n{work}\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert done.returncode != 0
