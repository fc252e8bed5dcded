"""GPU memory of a process by the NVIDIA driver (nvidia-ml-py); empty if the package or a driver is missing."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class DriverFigure:
    """Memory of one GPU that a process uses.

    Attributes:
        bytes: the memory in use.
        method: "process", the driver's figure of the process; or "difference", the increase of the GPU's memory in use.
            The second is used if the driver does not know the process: in a container it often sees other process ids.
    """

    name: str
    bytes: int
    method: str


class DriverMemory:
    """The GPUs of this machine, and their memory in use at construction.

    Without nvidia-ml-py or an NVIDIA driver the list is empty.
    """

    def __init__(self) -> None:
        self._nvml = _nvml()
        self._before = [self._nvml.nvmlDeviceGetMemoryInfo(gpu).used for gpu in self._gpus()] if self._nvml else []

    def of(self, pid: int, devices: Mapping[str, str | None] = MappingProxyType({})) -> tuple[DriverFigure, ...]:
        """The memory of the process now, for each GPU that it uses.

        devices: names of llama.cpp's devices -> their PCI bus ids. A GPU among them has that name, any other "GPU 0"
            and so on: the driver and CUDA may number GPUs differently.
        """
        if self._nvml is None:
            return ()
        figures, names = [], {_address(pci): name for name, pci in devices.items() if pci}
        for i, (gpu, before) in enumerate(zip(self._gpus(), self._before, strict=True)):
            name = names.get(_address(self._nvml.nvmlDeviceGetPciInfo(gpu).busId), f"GPU {i}") if names else f"GPU {i}"
            used = [
                process.usedGpuMemory
                for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(gpu)
                if process.pid == pid and process.usedGpuMemory
            ]
            more = self._nvml.nvmlDeviceGetMemoryInfo(gpu).used - before
            if used:
                figures.append(DriverFigure(name, used[0], "process"))
            elif more > 0:
                figures.append(DriverFigure(name, more, "difference"))
        return tuple(figures)

    def _gpus(self) -> list[Any]:
        assert self._nvml is not None
        return [self._nvml.nvmlDeviceGetHandleByIndex(i) for i in range(self._nvml.nvmlDeviceGetCount())]


def _address(pci: str | bytes) -> str:
    """A PCI bus id with four digits of the domain, of which the driver writes eight."""
    text = pci.decode() if isinstance(pci, bytes) else pci
    domain, _, rest = text.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


def _nvml() -> Any:
    """pynvml, initialized; None if the package or the driver is missing."""
    try:
        pynvml = importlib.import_module("pynvml")
        pynvml.nvmlInit()
    except Exception:  # NVMLError, which only the package itself can name
        return None
    return pynvml
