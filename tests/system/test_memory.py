"""Memory by the calls of each system. macOS and Windows are stand-ins with the layouts of their headers."""

import ctypes
import os
import struct
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from quantkit.system import memory

GB = 1 << 30


def test_linux_says_what_the_kernel_says() -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory.physical() == physical
    assert 0 < (memory.free() or 0) <= physical
    own, peak, shared = memory.resident(), memory.peak(), memory.proportional()
    assert own is not None and peak is not None and shared is not None
    assert 1 << 20 < shared <= own * 1.2
    assert own <= peak * 1.1
    assert abs((memory.resident(os.getpid()) or 0) - own) < own / 2
    assert memory.resident(1 << 30) is None


def filled(target: Any, data: bytes) -> int:
    """Write `data` where a ctypes argument points to."""
    ctypes.memmove(target, data, len(data))
    return 1


@pytest.fixture
def macos(monkeypatch: pytest.MonkeyPatch) -> None:
    """mach/host_info.h and sys/resource.h: vm_statistics64 starts with free, active, inactive pages."""

    def host_statistics64(host: int, flavor: int, counts: Any, length: Any) -> int:
        assert (host, flavor) == (77, 4)
        filled(counts, struct.pack("<4I", 1000, 5000, 300, 200))
        return 0

    def proc_pid_rusage(process: int, flavor: int, usage: Any) -> int:
        if process != os.getpid() or flavor:
            return -1
        # ri_uuid, user time, system time, two wakeups, pageins, wired, resident, footprint
        filled(usage, bytes(16) + struct.pack("<8Q", 1, 2, 3, 4, 5, 6, 123 << 20, 8))
        return 0

    library = SimpleNamespace(
        host_statistics64=host_statistics64, mach_host_self=lambda: 77, proc_pid_rusage=proc_pid_rusage
    )
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)


def test_macos_counts_free_and_inactive_pages_and_bytes(macos: None) -> None:
    assert memory.free() == 1300 * os.sysconf("SC_PAGE_SIZE")
    assert memory.resident() == 123 << 20
    assert memory.resident(1 << 30) is None
    assert memory.resident_unit() == 1


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """sysinfoapi.h and psapi.h."""

    def status(target: Any) -> int:
        length, *_ = struct.unpack("<I", ctypes.string_at(target, 4))
        assert length == 64
        return filled(target, struct.pack("<IIQQQQQQQ", 64, 40, 16 * GB, 9 * GB, 20 * GB, 5 * GB, 0, 0, 0))

    def counters(handle: Any, target: Any, size: int) -> int:
        assert size == 72
        peak, now = (3 * GB, 2 * GB) if handle.value == 99 else (7 * GB, 6 * GB)
        return filled(target, struct.pack("<IIQQ", 72, 0, peak, now))

    closed: list[int] = []
    kernel = SimpleNamespace(
        GlobalMemoryStatusEx=status,
        K32GetProcessMemoryInfo=counters,
        GetCurrentProcess=Function(lambda: 99),
        OpenProcess=Function(lambda _access, _inherit, process: 55 if process == 4321 else 0),
        CloseHandle=lambda handle: closed.append(handle.value),
    )
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    monkeypatch.setattr(memory.os, "name", "nt")


class Function:
    """A function of a library, which has a type of result."""

    restype: Any = None

    def __init__(self, call: Any) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


def test_windows_memory_is_limited_by_its_page_file_too(windows: None) -> None:
    assert memory.physical() == 16 * GB
    assert memory.free() == 5 * GB
    assert (memory.resident(), memory.peak()) == (2 * GB, 3 * GB)
    assert memory.resident(4321) == 6 * GB
    assert memory.resident(1) is None


def test_without_the_module_resource_there_is_no_limit_of_the_address_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert memory.address_space_limit() is None


def test_without_any_answer_a_size_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf")
    assert memory.physical() is None
    assert memory.resident() is None
