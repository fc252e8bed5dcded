"""Memory of a GGUF file that llama.cpp loads in a child process.

The memory of each device comes from the buffer sizes in llama.cpp's log, to 0.01 MiB. (llama_get_memory_breakdown is
exact, but it returns a C++ map by value, which only C++ can read safely.)
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError
from quantkit.gguf.reader import GgufHeader, read_header
from quantkit.llamacpp.session import LlamaSession
from quantkit.measurement.load_options import LoadOptions
from quantkit.measurement.nvml import DriverFigure, DriverMemory

LAYERS: tuple[int | None, ...] = (0, 8, 16, None)
RESOLUTION = 0.01 * (1 << 20)
"""Resolution of the sizes in llama.cpp's log, in bytes."""

_BUFFER = re.compile(r"^\w+: +(?P<name>\S+) +(?P<what>\S.*?) buffer size = +(?P<size>[\d.]+) MiB")
_OFFLOADED = re.compile(r"^load_tensors: offloaded (\d+)/(\d+) layers")


@dataclass(frozen=True)
class Device:
    """A device that can hold layers. Sizes are bytes as the device reports them; 0 if it reports none.

    `pci`: its PCI bus id, such as "0000:c1:00.0".
    """

    name: str
    description: str
    memory: int
    free: int
    pci: str | None = None


@dataclass(frozen=True)
class Buffer:
    """A buffer, named by llama.cpp's buffer type. `holds`: "weights", "kv", "compute" or "other"; size in bytes."""

    name: str
    holds: str
    bytes: int


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on one device. "CPU" is the host, including pinned buffers for a GPU.

    Attributes:
        weights: of the CPU, the mapped part of the file: from the first to the last tensor that the CPU uses unchanged.
        kv: the KV cache and recurrent states.
        compute: the scratch memory of the graph.
        other: the output buffer, and copies of weights that are repacked for the CPU's instructions.
    """

    name: str
    weights: int = 0
    kv: int = 0
    compute: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        """Bytes of all uses."""
        return self.weights + self.kv + self.compute + self.other


@dataclass(frozen=True)
class LoadedMemory:
    """The memory of a loaded model after it evaluated one token and a small batch. Sizes in bytes.

    Attributes:
        gpu_layers: the number of layers that llama.cpp offloaded.
        of_layers: the number that means all layers; the output layer counts as one.
        cpu_moe: the first layers, whose experts stay on the CPU.
        devices: by device and use.
        buffers: the buffers in llama.cpp's log.
        rss_before: resident memory of the process before it loads the model: Python itself.
        peak_rss: largest resident memory of the process (VmHWM), including `rss_before` and the pages of the mapped
            file that were read. Reserved memory that was not used does not count.
        peak_pss: largest sampled proportional set size: a page shared with other processes counts in part.
        driver: GPU memory as the driver reports it; empty without a GPU or without nvidia-ml-py.

    A figure that the system does not report is None.
    """

    gpu_layers: int
    of_layers: int
    n_ctx: int
    devices: tuple[DeviceMemory, ...]
    buffers: tuple[Buffer, ...]
    rss_before: int | None
    peak_rss: int | None
    peak_pss: int | None
    driver: tuple[DriverFigure, ...] = ()
    cpu_moe: int = 0

    def document(self) -> dict[str, Any]:
        """A row of report.json's "memory"."""
        return {
            "gpu_layers": self.gpu_layers,
            "of_layers": self.of_layers,
            **({"cpu_moe": self.cpu_moe} if self.cpu_moe else {}),
            "n_ctx": self.n_ctx,
            "devices": [
                {"name": d.name, "weights": d.weights, "kv": d.kv, "compute": d.compute, "other": d.other}
                for d in self.devices
            ],
            "rss_before": self.rss_before,
            "peak_rss": self.peak_rss,
            "peak_pss": self.peak_pss,
        } | ({"driver": [vars(figure) for figure in self.driver]} if self.driver else {})


def gpu_devices(model: Path, *, rpc: Sequence[str] = ()) -> list[Device]:
    """The devices to which llama.cpp can offload layers of `model`.

    Args:
        rpc: llama.cpp rpc-servers ("host:port"); their devices are included.

    Raises:
        QuantkitError: a server cannot be reached, or llama.cpp crashes.
        MissingExtraError: llama-cpp-python is not installed.
    """
    with LlamaSession(model) as session:
        return [Device(**device) for device in session.ask({"task": "devices", "rpc": list(rpc)}, timeout=120.0)]


def loaded_memory(
    model: Path, options: LoadOptions = LoadOptions(), *, n_ctx: int = 4096, timeout: float | None = 1800.0
) -> LoadedMemory:
    """The memory of `model` after it evaluates one token and a small batch in a context of `n_ctx` tokens.

    Args:
        timeout: seconds until the child process is stopped; None for no limit.

    Raises:
        QuantkitError: llama.cpp rejects the file, runs out of memory, crashes or exceeds the timeout.
        UsageError: the type of the KV cache is unknown.
    """
    header = read_header(model)
    driver = DriverMemory()
    request = options.request(model)
    with LlamaSession(model) as session:
        loaded = session.ask({"task": "load", "n_ctx": n_ctx, **request}, timeout=timeout)
        figures = driver.of(session.pid, loaded["devices"])
    offloaded = [match for match in map(_OFFLOADED.match, loaded["log"]) if match]
    buffers = _buffers(loaded["log"])
    return LoadedMemory(
        gpu_layers=int(offloaded[-1][1]) if offloaded and loaded["devices"] else 0,
        of_layers=int(offloaded[-1][2]) if offloaded else all_layers(header),
        n_ctx=loaded["n_ctx"],
        devices=_by_device(buffers, loaded["devices"]),
        buffers=buffers,
        rss_before=loaded["rss_before"],
        peak_rss=loaded["peak_rss"],
        peak_pss=loaded["peak_pss"],
        driver=figures,
        cpu_moe=options.cpu_moe if loaded["devices"] else 0,
    )


def measure_memory(
    model: Path,
    layers: Sequence[int | None] = LAYERS,
    options: LoadOptions = LoadOptions(),
    *,
    n_ctx: int = 4096,
) -> tuple[list[LoadedMemory], list[str]]:
    """The memory for each number of offloaded layers in `layers`, and a note on each number that cannot be loaded.

    None stands for all layers, and so does a number larger than the model's. Each number is measured once. Without a
    device only 0 is measured.

    Raises:
        QuantkitError: the model cannot be loaded without offloading (see `loaded_memory`).
    """
    requested = distinct_layers(layers, all_layers(read_header(model)))
    possible = requested if gpu_devices(model, rpc=options.rpc) else [n for n in requested if n == 0]
    notes = []
    if possible != requested:
        layer_counts = ", ".join(str(n) for n in requested if n)
        notes.append(
            f"{model.name}: llama.cpp finds no GPU, so the memory with {layer_counts} layers offloaded is not measured"
        )
    rows = []
    for n in possible:
        try:
            rows.append(loaded_memory(model, replace(options, gpu_layers=n), n_ctx=n_ctx))
        except QuantkitError as error:
            if n == 0:
                raise
            notes.append(f"with {n} layers offloaded: {error}")
    return rows, notes


def all_layers(header: GgufHeader) -> int:
    """The number of layers that llama.cpp can offload: the layers of the file, and one for the output."""
    arch = header.value("general.architecture")
    count = header.value(f"{arch}.block_count")
    return count + 1 if isinstance(count, int) else 1


def distinct_layers(requested: Sequence[int | None], of_layers: int) -> list[int]:
    """The unique numbers of layers, ascending; None and numbers beyond the model become all its layers."""
    return sorted({of_layers if n is None else min(n, of_layers) for n in requested})


def _buffers(log: Sequence[str]) -> tuple[Buffer, ...]:
    """Sums by name and use. llama.cpp plans compute buffers more than once, so the last size counts."""
    totals: dict[tuple[str, str], int] = {}
    for match in filter(None, map(_BUFFER.match, log)):
        name, use = match["name"], match["what"]
        if use == "model":
            holds = "weights" if _is_plain(name) else "other"
        else:
            holds = "compute" if use == "compute" else "other" if use == "output" else "kv"
        size = round(float(match["size"]) * (1 << 20))
        earlier = 0 if holds == "compute" else totals.get((name, holds), 0)
        totals[name, holds] = earlier + size
    return tuple(Buffer(name, holds, size) for (name, holds), size in totals.items())


def _is_plain(buffer: str) -> bool:
    """Whether the buffer contains the weights as in the file; the CPU's other buffers contain repacked copies."""
    return not buffer.startswith(("CPU_", "AMX")) or buffer == "CPU_Mapped"


def _by_device(buffers: Sequence[Buffer], devices: Collection[str]) -> tuple[DeviceMemory, ...]:
    by_device: dict[str, dict[str, int]] = {"CPU": {}}
    for buffer in buffers:
        sizes = by_device.setdefault(_device_of(buffer.name, devices), {})
        sizes[buffer.holds] = sizes.get(buffer.holds, 0) + buffer.bytes
    return tuple(DeviceMemory(name, **sizes) for name, sizes in by_device.items())


def _device_of(buffer: str, devices: Collection[str]) -> str:
    """The device of a buffer such as "CUDA0", "Metal_Mapped" or "RPC0[host:port]"; "CPU" for "CUDA_Host" and others.

    An RPC device keeps the buffer's name, because each server numbers its devices from 0.
    """
    if buffer.startswith("RPC"):
        return buffer
    names = sorted(devices, key=len, reverse=True)
    return next((name for name in names if re.match(rf"{re.escape(name)}(?!\d)", buffer)), "CPU")
