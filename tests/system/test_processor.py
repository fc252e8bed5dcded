"""Names of the processor and of this start of the machine: Linux's files, macOS's sysctl, Windows's registry."""

import contextlib
import ctypes
import os
import platform
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from quantkit.system import processor

ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\nCPU implementer\t: 0x41\n"


def test_linux_names_the_processor_and_its_instruction_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: sse2 avx2\n")
    monkeypatch.setattr(processor, "_PROCESSORS", tmp_path / "cpuinfo")
    assert processor.name() == "Some CPU @ 2 GHz"
    assert processor.features() == {"sse2", "avx2"}
    before = processor.identity()
    (tmp_path / "cpuinfo").write_text(ARM)
    assert processor.features() == {"fp", "asimd", "asimddp", "i8mm"}
    assert processor.name() == platform.machine()
    assert processor.identity() != before


def test_a_system_without_files_still_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_PROCESSORS", tmp_path / "none")
    monkeypatch.setattr(processor, "_BOOT", tmp_path / "none")
    assert processor.name() == platform.machine()
    assert processor.identity()
    assert processor.features() == frozenset()
    assert processor.boot() == ""


def test_this_start_of_the_machine_has_an_id_that_stays() -> None:
    assert processor.boot() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_macos_answers_by_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        b"machdep.cpu.brand_string": b"Apple M2\0",
        b"kern.bootsessionuuid": b"3F0A\0",
        b"hw.optional.arm.FEAT_DotProd": b"\1\0\0\0",
        b"hw.optional.arm.FEAT_I8MM": b"\0\0\0\0",
    }

    def sysctlbyname(key: bytes, value: Any, length: Any, new: None, size: int) -> int:
        assert (new, size) == (None, 0)
        if key not in values:
            return -1
        ctypes.memmove(value, values[key], len(values[key]))
        ctypes.cast(length, ctypes.POINTER(ctypes.c_size_t))[0] = len(values[key])
        return 0

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(sysctlbyname=sysctlbyname))
    assert processor.name() == "Apple M2"
    assert processor.boot() == "3F0A"
    assert processor.features() == {"asimddp"}


def test_windows_answers_by_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    winreg: Any = ModuleType("winreg")
    values = {"ProcessorNameString": "Intel(R) Xeon(R)  ", "BootId": 17}
    winreg.HKEY_LOCAL_MACHINE = 2
    winreg.OpenKey = lambda root, path: contextlib.nullcontext(path)
    winreg.QueryValueEx = lambda folder, key: (values[key], 1)
    monkeypatch.setitem(sys.modules, "winreg", winreg)
    monkeypatch.setattr(processor.os, "name", "nt")
    assert processor.name() == "Intel(R) Xeon(R)"
    assert processor.boot() == "boot 17"


@pytest.mark.usefixtures("every_core")
def test_without_an_affinity_mask_all_processors_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processor.usable_processors() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "process_cpu_count", lambda: 3, raising=False)
    assert processor.usable_processors() == 3
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert processor.usable_processors() == 1
