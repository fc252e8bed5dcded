"""The processor and this start of the machine, as each system names them."""

import contextlib
import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import Any

from quantkit.system import optional_module

_PROCESSORS = Path("/proc/cpuinfo")
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_WINDOWS_PROCESSOR = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
_WINDOWS_BOOT = r"SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management\PrefetchParameters"
_MACOS_FEATURES = {"hw.optional.arm.FEAT_DotProd": "asimddp", "hw.optional.arm.FEAT_I8MM": "i8mm"}
"""Names of macOS, and Linux's names of the same instruction sets."""


def usable_processors() -> int:
    """Logical processors that this process may use: its affinity mask; all where the system has none."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return getattr(os, "process_cpu_count", os.cpu_count)() or 1


def features() -> frozenset[str]:
    """Instruction sets by the names of Linux; on Windows, and what macOS does not name: empty."""
    if sys.platform == "darwin":
        return frozenset(name for key, name in _MACOS_FEATURES.items() if _sysctl(key).startswith(b"\1"))
    for line in _linux_lines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def name() -> str:
    """The name of the processor, such as "AMD EPYC 7763"; the machine type where the system has no name."""
    if sys.platform == "darwin":
        text = _text(_sysctl("machdep.cpu.brand_string"))
    elif os.name == "nt":
        text = str(_registry(_WINDOWS_PROCESSOR, "ProcessorNameString") or "").strip()
    else:
        named = (line.partition(":")[2].strip() for line in _linux_lines() if line.startswith("model name"))
        text = next(named, "")
    return text or platform.machine()


def identity() -> bytes:
    """What code compiled for exactly this processor depends on."""
    lines = {line for line in _linux_lines() if line.startswith(("flags", "Features", "model name"))}
    return "".join(sorted(lines)).encode() or f"{platform.machine()} {name()}".encode()


def boot() -> str:
    """The id of this start of the machine; empty if the system has none."""
    if sys.platform == "darwin":
        return _text(_sysctl("kern.bootsessionuuid"))
    if os.name == "nt":
        number = _registry(_WINDOWS_BOOT, "BootId")
        return "" if number is None else f"boot {number}"
    with contextlib.suppress(OSError):
        return _BOOT.read_text("ascii").strip()
    return ""


def _linux_lines() -> list[str]:
    with contextlib.suppress(OSError):
        return _PROCESSORS.read_text("utf-8", "replace").splitlines()
    return []


def _sysctl(key: str) -> bytes:
    """The bytes of a value of macOS's sysctlbyname; empty if there is none."""
    value, length = ctypes.create_string_buffer(256), ctypes.c_size_t(256)
    with contextlib.suppress(AttributeError, OSError):
        if ctypes.CDLL(None).sysctlbyname(key.encode(), value, ctypes.byref(length), None, 0) == 0:
            return value.raw[: length.value]
    return b""


def _text(value: bytes) -> str:
    return value.partition(b"\0")[0].decode("utf-8", "replace")


def _registry(path: str, key: str) -> Any:
    """A value of the Windows registry below HKEY_LOCAL_MACHINE; None if there is none."""
    winreg = optional_module("winreg")
    if winreg is None:
        return None
    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as folder:
            return winreg.QueryValueEx(folder, key)[0]
    except OSError:
        return None
