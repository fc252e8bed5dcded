"""What this machine has: memory that a model may take, GPUs, and how fast the CPU reads its memory."""

import contextlib
import importlib
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PROBE_BYTES = 48 << 20
_CHUNK = 256 << 10
_TYPICAL_GPU = 300e9


@dataclass(frozen=True)
class Machine:
    """Bytes free to use, and bytes a second that each device reads. `vram` is 0 without a GPU.

    `gpu_bandwidth_from` says where that figure is from: the driver's clocks, or a typical GPU. `cpu_features`: as
    `cpu_features()`.
    """

    ram: int
    vram: int = 0
    gpu_name: str = ""
    gpu_bandwidth: float = _TYPICAL_GPU
    gpu_bandwidth_from: str = "a typical GPU's"
    cpu_features: frozenset[str] = frozenset()


def this_machine() -> Machine:
    """The memory free now, under the limits of the process and its control group, and the first GPU."""
    name, vram, bandwidth = _gpu()
    return Machine(
        ram=min(_memory_limits()),
        vram=vram,
        gpu_name=name,
        gpu_bandwidth=bandwidth or _TYPICAL_GPU,
        gpu_bandwidth_from="the driver's clocks" if bandwidth else "a typical GPU's",
        cpu_features=cpu_features(),
    )


def cpu_features() -> frozenset[str]:
    """The instruction sets of the CPU as Linux names them; empty where it does not say."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def _memory_limits() -> Iterator[int]:
    yield available_memory()
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        yield soft
    yield from _control_group()


def available_memory() -> int:
    """Bytes of memory that this machine can give without swapping."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024
    with contextlib.suppress(ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 8 << 30


def _control_group() -> Iterator[int]:
    """What the process's control groups leave: version 2 from the process's own group up to the root, and version 1."""
    root = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        folder = root / own[3:].strip().lstrip("/")
        for each in (folder, *folder.parents):
            yield from _left(each / "memory.max", each / "memory.current")
            if each == root:
                break
    yield from _left(root / "memory/memory.limit_in_bytes", root / "memory/memory.usage_in_bytes")


def _left(limit: Path, used: Path) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):
        most = int(limit.read_text())  # "max" is no number: no limit
        if most < 1 << 60:
            yield max(most - int(used.read_text()), 0)


def _gpu() -> tuple[str, int, float]:
    """Name, free bytes and bytes a second of the first NVIDIA GPU; ("", 0, 0) where there is none or no driver."""
    if not any(Path("/dev").glob("nvidia[0-9]*")) and sys.platform == "linux":
        return "", 0, 0.0
    try:
        # named so because nobody without a GPU needs to have it
        pynvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return "", 0, 0.0
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        name = pynvml.nvmlDeviceGetName(handle)
        free = int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
    except pynvml.NVMLError:
        return "", 0, 0.0
    bandwidth = 0.0
    with contextlib.suppress(pynvml.NVMLError, AttributeError):
        clock = pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM)
        bandwidth = 2e6 * clock * pynvml.nvmlDeviceGetMemoryBusWidth(handle) / 8
    return str(name), free, bandwidth


def probe_bandwidth(seconds: float = 0.15) -> float:
    """Bytes a second that all CPUs together read from memory: each copies its part of 48 MB into its own cache."""
    import numpy as np

    threads = len(os.sched_getaffinity(0))
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
