"""Memory of a GGUF file that llama.cpp loads in a child process.

The memory of each device comes from the buffer sizes in llama.cpp's log, to 0.01 MiB. (llama_get_memory_breakdown is
exact, but it returns a C++ map by value, which only C++ can read safely.)
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from quantkit.errors import QuantkitError
from quantkit.gguf.reader import GgufHeader, read_header
from quantkit.gguf.types import tensor_type
from quantkit.llamacpp.session import LlamaSession
from quantkit.measurement.nvml import DriverFigure, DriverMemory

LAYERS: tuple[int | None, ...] = (0, 8, 16, None)
RESOLUTION = 0.01 * (1 << 20)
"""Resolution of the sizes in llama.cpp's log, in bytes."""

_BUFFER = re.compile(r"^\w+: +(?P<name>\S+) +(?P<what>\S.*?) buffer size = +(?P<size>[\d.]+) MiB")
_OFFLOADED = re.compile(r"^load_tensors: offloaded (\d+)/(\d+) layers")
_FLASH_ATTENTION = {None: -1, False: 0, True: 1}


@dataclass(frozen=True)
class Device:
    """A device that can hold layers; sizes in bytes as the device reports them, 0 if it does not."""

    name: str
    description: str
    memory: int
    free: int


@dataclass(frozen=True)
class Buffer:
    """A buffer, named by llama.cpp's buffer type; `holds` is "weights", "kv", "compute" or "other"; size in bytes."""

    name: str
    holds: str
    bytes: int


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on one device; "CPU" is the host, with pinned buffers for a GPU.

    `weights` of the CPU are the part of the file that is mapped: from the first tensor it uses as it is in the file to
    the last, whatever lies between. `kv` is the KV cache (and a recurrent state), `compute` the scratch of the graph,
    `other` the output buffer and the copies of weights that are repacked for the CPU's instructions.
    """

    name: str
    weights: int = 0
    kv: int = 0
    compute: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.compute + self.other


@dataclass(frozen=True)
class LoadedMemory:
    """The memory of a model that was loaded and evaluated one token and a small batch. Sizes in bytes.

    `gpu_layers` are those really offloaded, `of_layers` what counts as all of them (the output layer is one).
    `peak_rss` is the process's largest resident size (VmHWM): the pages of the mapped file that were read count in it,
    though the system can take them back, and so does Python itself (`rss_before` the model). Memory that was reserved
    and not touched does not. `peak_pss` is the largest of its samples, pages shared with other processes in parts. Both
    None where the system does not tell. `driver`: empty without a GPU, or nvidia-ml-py.
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

    def document(self) -> dict[str, Any]:
        """A row of report.json's "memory"."""
        return {
            "gpu_layers": self.gpu_layers,
            "of_layers": self.of_layers,
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
    """The devices llama.cpp can offload layers of `model` to, those of the RPC servers ("host:port") included.

    Raises QuantkitError when a server cannot be reached, and as `LlamaSession` does.
    """
    with LlamaSession(model) as session:
        return [Device(**device) for device in session.ask({"task": "devices", "rpc": list(rpc)}, timeout=120.0)]


def loaded_memory(
    model: Path,
    *,
    gpu_layers: int | None = None,
    n_ctx: int = 4096,
    kv_type: str = "f16",
    flash_attn: bool | None = None,
    n_batch: int = 2048,
    n_ubatch: int = 512,
    n_threads: int | None = None,
    rpc: Sequence[str] = (),
    timeout: float | None = 1800.0,
) -> LoadedMemory:
    """Load `model` with that many layers offloaded (None: all), make a context, evaluate a token and a small batch.

    `flash_attn` None leaves it to llama.cpp. `rpc`: see `gpu_devices`. Without a device nothing is
    offloaded. Raises QuantkitError when llama.cpp refuses the file, runs out of memory, dies or is late; UsageError for
    an unknown `kv_type`.
    """
    header = read_header(model)
    driver = DriverMemory()
    request = load_request(model, gpu_layers, kv_type, flash_attn, n_batch, n_ubatch, n_threads, rpc)
    with LlamaSession(model) as session:
        loaded = session.ask({"task": "load", "n_ctx": n_ctx, **request}, timeout=timeout)
        figures = driver.of(session.pid)
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
    )


def measure_memory(
    model: Path,
    layers: Sequence[int | None] = LAYERS,
    *,
    n_ctx: int = 4096,
    n_threads: int | None = None,
    rpc: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[LoadedMemory], list[str]]:
    """A row for each number of offloaded layers (None: all) that this machine can load, and a sentence on each other.

    Without a device only 0 is possible. Numbers beyond the model's layers become all of them, and rows are unique.
    Raises as `loaded_memory` if the model cannot be loaded without offloading.
    """
    requested = distinct_layers(layers, all_layers(read_header(model)))
    possible = requested if gpu_devices(model, rpc=rpc) else [n for n in requested if n == 0]
    notes = []
    if possible != requested:
        left = ", ".join(str(n) for n in requested if n)
        notes.append(
            f"{model.name}: llama.cpp finds no GPU, so the memory with {left} layers offloaded is not measured"
        )
    rows = []
    for done, n in enumerate(possible):
        try:
            rows.append(loaded_memory(model, gpu_layers=n, n_ctx=n_ctx, n_threads=n_threads, rpc=rpc))
        except QuantkitError as error:
            if n == 0:
                raise
            notes.append(f"with {n} layers offloaded: {error}")
        if progress is not None:
            progress(done + 1, len(possible))
    return rows, notes


def all_layers(header: GgufHeader) -> int:
    """How many layers llama.cpp can offload: those of the file, and the output as one more."""
    arch = header.value("general.architecture")
    count = header.value(f"{arch}.block_count")
    return count + 1 if isinstance(count, int) else 1


def distinct_layers(requested: Sequence[int | None], of_layers: int) -> list[int]:
    """The unique numbers of layers, ascending; None and numbers beyond the model become all its layers."""
    return sorted({of_layers if n is None else min(n, of_layers) for n in requested})


def load_request(
    model: Path,
    gpu_layers: int | None,
    kv_type: str,
    flash_attn: bool | None,
    n_batch: int,
    n_ubatch: int,
    n_threads: int | None,
    rpc: Sequence[str],
) -> dict[str, Any]:
    """The fields that the load and bench tasks share."""
    return {
        "model": str(model),
        "gpu_layers": -1 if gpu_layers is None else gpu_layers,
        "kv_type": int(GGMLQuantizationType(tensor_type(kv_type))),
        "flash_attn": _FLASH_ATTENTION[flash_attn],
        "n_batch": n_batch,
        "n_ubatch": n_ubatch,
        "n_threads": n_threads,
        "rpc": list(rpc),
    }


def _buffers(log: Sequence[str]) -> tuple[Buffer, ...]:
    """Sums by name and use; llama.cpp plans compute buffers more than once, so the last size counts."""
    totals: dict[tuple[str, str], int] = {}
    for match in filter(None, map(_BUFFER.match, log)):
        name, what = match["name"], match["what"]
        if what == "model":
            holds = "weights" if _is_plain(name) else "other"
        else:
            holds = "compute" if what == "compute" else "other" if what == "output" else "kv"
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
    """Of "CUDA0", "Metal_Mapped", "RPC0[host:port]" the device itself; of "CUDA_Host" and all of the CPU's "CPU".

    An RPC device keeps the buffer's name, for each server numbers its devices from 0.
    """
    if buffer.startswith("RPC"):
        return buffer
    names = sorted(devices, key=len, reverse=True)
    return next((name for name in names if re.match(rf"{re.escape(name)}(?!\d)", buffer)), "CPU")
