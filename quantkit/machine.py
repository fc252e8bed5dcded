"""This machine as the process may use it: cores, memory, GPUs, and how fast the CPU reads its memory."""

import contextlib
import importlib
import platform
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.system import memory, processor

CONTROL_GROUPS = Path("/sys/fs/cgroup")
CONTROL_GROUP_OF_PROCESS = Path("/proc/self/cgroup")
_PROBE_BYTES = 48 << 20
_CHUNK = 256 << 10
_TYPICAL_GPU = 300e9
_COMMAND_LINE, _SMALL_MACHINE = 150 << 20, 8 << 30


@dataclass(frozen=True)
class Machine:
    """Bytes free to use, and bytes a second that each device reads. `vram` is 0 without a GPU.

    `vrams`: of each GPU if there are several; `vram` is their sum. `unified`: the GPU shares `ram`, of which it may
    take `vram`. `gpu_bandwidth_from`: the source of that figure, the driver's clocks or a typical GPU. `cpu_features`:
    as `cpu_features()`.
    """

    ram: int
    vram: int = 0
    gpu_name: str = ""
    gpu_bandwidth: float = _TYPICAL_GPU
    gpu_bandwidth_from: str = "a typical GPU's"
    cpu_features: frozenset[str] = frozenset()
    vrams: tuple[int, ...] = ()
    unified: bool = False


def this_machine() -> Machine:
    """The memory free now, under the limits of the process and its control group, and the GPUs."""
    names, vrams, bandwidth = _gpus()
    ram = available_memory()
    unified = not names and sys.platform == "darwin" and platform.machine() == "arm64"
    return Machine(
        ram=ram,
        vram=unified_vram(ram) if unified else sum(vrams),
        vrams=vrams if len(vrams) > 1 else (),
        unified=unified,
        gpu_name=", ".join(names),
        gpu_bandwidth=bandwidth or _TYPICAL_GPU,
        gpu_bandwidth_from="the driver's clocks" if bandwidth else "a typical GPU's",
        cpu_features=cpu_features(),
    )


def cpu_features() -> frozenset[str]:
    """The instruction sets of the CPU as Linux names them; empty where the system does not name them."""
    return processor.features()


def cores() -> int:
    """CPU cores that this process may use: its affinity mask, under the CPU quota of its control groups."""
    return max(1, min([processor.usable_processors(), *_cpu_quotas()]))


def available_memory() -> int:
    """Bytes that this process can allocate without swapping: free memory, under every limit of `memory_limit`."""
    free = [_free_memory(), *(max(limit - used, 0) for limit, used in _control_group_memory())]
    soft = _address_space_limit()
    return min(free if soft is None else [*free, soft])


def memory_limit() -> int:
    """Bytes of memory that this process may ever hold: physical memory, its control groups' limits, RLIMIT_AS."""
    limits = [_physical_memory(), *(limit for limit, _ in _control_group_memory())]
    soft = _address_space_limit()
    return min(limits if soft is None else [*limits, soft])


def peak_memory() -> int:
    """The largest resident size of this process in bytes; 0 where the system does not say."""
    return memory.peak() or 0


def resident_memory() -> int:
    """Bytes of memory that this process holds now; where the system does not say, about what the command line needs."""
    return memory.resident() or _COMMAND_LINE


def release_freed_memory() -> None:
    """Return memory that was freed to the system; glibc keeps it otherwise, up to a third of a large vocabulary."""
    memory.return_freed()


def _free_memory() -> int:
    free = memory.free()
    return _physical_memory() if free is None else free


def _physical_memory() -> int:
    return memory.physical() or _SMALL_MACHINE


def _address_space_limit() -> int | None:
    return memory.address_space_limit()


def _control_groups() -> Iterator[Path]:
    """The folders of the process's own control group (version 2) and of its parents up to the root."""
    with contextlib.suppress(OSError, StopIteration):
        group_line = next(line for line in CONTROL_GROUP_OF_PROCESS.read_text().splitlines() if line.startswith("0::"))
        folder = CONTROL_GROUPS / group_line[3:].strip().lstrip("/")
        for group in (folder, *folder.parents):
            yield group
            if group == CONTROL_GROUPS:
                return


def _control_group_memory() -> Iterator[tuple[int, int]]:
    """(limit, use) in bytes of every control group with a memory limit; versions 2 and 1."""
    files = [(group / "memory.max", group / "memory.current") for group in _control_groups()]
    version1 = CONTROL_GROUPS / "memory"
    files.append((version1 / "memory.limit_in_bytes", version1 / "memory.usage_in_bytes"))
    for limit_file, use_file in files:
        with contextlib.suppress(OSError, ValueError):
            limit = int(limit_file.read_text())  # "max" is not a number: no limit
            if limit < 1 << 60:
                yield limit, int(use_file.read_text())


def _cpu_quotas() -> Iterator[int]:
    for group in _control_groups():
        with contextlib.suppress(OSError, ValueError):
            quota, period = (int(word) for word in (group / "cpu.max").read_text().split())
            yield max(1, -(-quota // period))


def unified_vram(ram: int) -> int:
    """Bytes of a memory that CPU and GPU share which the GPU may take: three quarters, Metal's limit on large Macs."""
    return ram * 3 // 4


def _gpus() -> tuple[tuple[str, ...], tuple[int, ...], float]:
    """Names and free bytes of the NVIDIA GPUs, and bytes a second of the first; empty without a GPU or a driver."""
    none: tuple[tuple[str, ...], tuple[int, ...], float] = ((), (), 0.0)
    if not any(Path("/dev").glob("nvidia[0-9]*")) and sys.platform == "linux":
        return none
    try:
        # imported by name because a machine without a GPU does not need it
        pynvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return none
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        names = tuple(str(pynvml.nvmlDeviceGetName(handle)) for handle in handles)
        free = tuple(int(pynvml.nvmlDeviceGetMemoryInfo(handle).free) for handle in handles)
    except pynvml.NVMLError:
        return none
    if not handles:
        return none
    bandwidth = 0.0
    with contextlib.suppress(pynvml.NVMLError, AttributeError):
        clock = pynvml.nvmlDeviceGetMaxClockInfo(handles[0], pynvml.NVML_CLOCK_MEM)
        bandwidth = 2e6 * clock * pynvml.nvmlDeviceGetMemoryBusWidth(handles[0]) / 8
    return names, free, bandwidth


def probe_bandwidth(seconds: float = 0.15) -> float:
    """Bytes a second that all CPUs together read from memory: each copies its part of 48 MB into its own cache."""
    import numpy as np

    threads = cores()
    source = np.ones(_PROBE_BYTES, dtype=np.uint8)
    moved = [0] * threads
    deadline = time.perf_counter() + seconds

    def read(number: int) -> None:
        near = np.empty(_CHUNK, dtype=np.uint8)
        part = source[number * source.size // threads : (number + 1) * source.size // threads]
        while time.perf_counter() < deadline:
            for start in range(0, part.size - _CHUNK + 1, _CHUNK):
                np.copyto(near, part[start : start + _CHUNK])
                moved[number] += _CHUNK

    start = time.perf_counter()
    workers = [threading.Thread(target=read, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(moved) / (time.perf_counter() - start)
