"""Memory of the machine and of processes, in bytes; None where the system gives no answer."""

import contextlib
import ctypes
import os
import sys
from pathlib import Path
from typing import Any

from quantkit.system import optional_module

_SUMMARY = Path("/proc/meminfo")
_PROCESSES = Path("/proc")
_HOST_VM_INFO64, _RUSAGE_INFO_V0 = 4, 0
_RESIDENT_AT = 64
"""Offset of ri_resident_size in macOS's struct rusage_info_v0."""


def physical() -> int | None:
    """Memory of the machine."""
    if os.name == "nt":
        status = _windows_status()
        return None if status is None else status.total
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def free() -> int | None:
    """Memory that can be allocated without swapping: free, and what the system can drop."""
    if os.name == "nt":
        status = _windows_status()
        return None if status is None else min(status.available, status.available_page_file)
    if sys.platform == "darwin":
        return _macos_free()
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(_SUMMARY.read_text("ascii").split("MemAvailable:")[1].split()[0]) * 1024
    return None


def resident(process: int | None = None) -> int | None:
    """Memory that this process, or the one of that number, holds now: its resident set."""
    if os.name == "nt":
        counters = _windows_counters(process)
        return None if counters is None else counters.working_set
    if sys.platform == "darwin":
        return _macos_resident(process or os.getpid())
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        statm = (_PROCESSES / str(process or "self") / "statm").read_text("ascii")
        return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def peak() -> int | None:
    """The largest resident set of this process so far; getrusage may report the parent's, which exec keeps."""
    if os.name == "nt":
        counters = _windows_counters(None)
        return None if counters is None else counters.peak_working_set
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int((_PROCESSES / "self" / "status").read_text("utf-8").split("VmHWM:")[1].split()[0]) * 1024
    resource = optional_module("resource")
    return None if resource is None else resident_unit() * int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def proportional() -> int | None:
    """The proportional set size of this process, which shares the size of common pages; Linux only."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        text = (_PROCESSES / "self" / "smaps_rollup").read_text("ascii")
        return int(text.split("\nPss:")[1].split()[0]) * 1024
    return None


def resident_unit() -> int:
    """Bytes of one unit of getrusage's ru_maxrss: macOS counts bytes, Linux and the others kibibytes."""
    return 1 if sys.platform == "darwin" else 1024


def address_space_limit() -> int | None:
    """The soft limit of the address space (ulimit -v) in bytes; None without one."""
    resource = optional_module("resource")
    if resource is None or not hasattr(resource, "RLIMIT_AS"):
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else int(soft)


def return_freed() -> None:
    """Return freed memory to the system; glibc keeps it otherwise, up to a third of a large vocabulary."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _macos_free() -> int | None:
    """Free and inactive pages of host_statistics64: free, active, inactive are its first fields."""
    counts = (ctypes.c_uint32 * 40)()
    length = ctypes.c_uint32(len(counts))
    with contextlib.suppress(AttributeError, OSError, ValueError):
        library = ctypes.CDLL(None)
        if library.host_statistics64(library.mach_host_self(), _HOST_VM_INFO64, counts, ctypes.byref(length)) == 0:
            return (counts[0] + counts[2]) * os.sysconf("SC_PAGE_SIZE")
    return None


def _macos_resident(process: int) -> int | None:
    usage = ctypes.create_string_buffer(512)
    with contextlib.suppress(AttributeError, OSError):
        if ctypes.CDLL(None).proc_pid_rusage(process, _RUSAGE_INFO_V0, usage) == 0:
            return ctypes.c_uint64.from_buffer(usage, _RESIDENT_AT).value
    return None


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("total_page_file", ctypes.c_uint64),
        ("available_page_file", ctypes.c_uint64),
        ("total_virtual", ctypes.c_uint64),
        ("available_virtual", ctypes.c_uint64),
        ("available_extended", ctypes.c_uint64),
    )


class _MemoryCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        ("peak_working_set", ctypes.c_size_t),
        ("working_set", ctypes.c_size_t),
        ("paged_pools", ctypes.c_size_t * 4),
        ("page_file", ctypes.c_size_t),
        ("peak_page_file", ctypes.c_size_t),
    )


def _windows_status() -> Any:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    return status if _kernel32().GlobalMemoryStatusEx(ctypes.byref(status)) else None


def _windows_counters(process: int | None) -> Any:
    kernel = _kernel32()
    kernel.GetCurrentProcess.restype = kernel.OpenProcess.restype = ctypes.c_void_p
    query = 0x1000  # PROCESS_QUERY_LIMITED_INFORMATION
    handle = kernel.OpenProcess(query, False, process) if process else kernel.GetCurrentProcess()
    try:
        return counters_of_handle(handle) if handle else None
    finally:
        if process and handle:
            kernel.CloseHandle(ctypes.c_void_p(handle))


def counters_of_handle(handle: int) -> Any:
    """The memory counters of a Windows process by its handle: `working_set` and `peak_working_set`; None on failure."""
    counters = _MemoryCounters(size=ctypes.sizeof(_MemoryCounters))
    done = _kernel32().K32GetProcessMemoryInfo(ctypes.c_void_p(handle), ctypes.byref(counters), counters.size)
    return counters if done else None


def _kernel32() -> Any:
    windll: Any = getattr(ctypes, "windll")  # noqa: B009 - only Windows has it
    return windll.kernel32
