"""The result of `plan`: a row for each type, the recommended one, and the commands that make and run it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.families import has_checked_plan
from quantkit.machine import Machine
from quantkit.planning.budget import Budget, Fit
from quantkit.planning.commands import commands
from quantkit.planning.context import Context
from quantkit.planning.devices import gpu_names
from quantkit.planning.memory import GPU_OVERHEAD, DeviceMemory
from quantkit.planning.projector import PlannedProjector
from quantkit.planning.sizes import Offer
from quantkit.planning.sources import Source
from quantkit.planning.speed import DeviceSpeed
from quantkit.units import human_bytes, listed


@dataclass(frozen=True)
class Row:
    """One type of the model.

    Attributes:
        offer: the type and its size.
        fit: its placement; None for a folder, which needs a GPU for all of it.
        devices: memory by device.
        missing: bytes short, 0 if it fits.
        speed: tokens per second, an estimate; 0 if there is none.
        whole_layers: layers on the GPU for a program that moves whole layers only (Ollama); None if none fit.
    """

    offer: Offer
    fit: Fit | None = None
    devices: tuple[DeviceMemory, ...] = ()
    missing: int = 0
    speed: float = 0.0
    whole_layers: int | None = None

    @property
    def gpu_bytes(self) -> int:
        """Bytes of GPU memory."""
        return sum(device.total for device in self.devices if device.name != "CPU")

    @property
    def cpu_bytes(self) -> int:
        """Bytes of CPU memory."""
        return sum(device.total for device in self.devices if device.name == "CPU")

    def document(self) -> dict[str, Any]:
        """The row as JSON."""
        offer = self.offer
        if offer.why_not:
            return {"type": offer.label, "why_not": offer.why_not}
        return {
            "type": offer.label,
            "bytes": offer.size,
            "bits_per_weight": round(offer.bits, 4),
            "needs_imatrix": offer.needs_imatrix,
            "fits": not self.missing,
            "missing_bytes": self.missing,
            "gpu_layers": None if self.fit is None else self.fit.gpu_layers,
            "cpu_moe": None if self.fit is None else self.fit.cpu_moe,
            "tensor_split": list(self.fit.memory.context.split) or None if self.fit is not None else None,
            "kv_on_gpu": None if self.fit is None else self.fit.memory.context.kv_on_gpu,
            "devices": [
                {key: value for key, value in {**vars(device), "total": device.total}.items() if value != 0}
                for device in self.devices
            ],
            "gpu_bytes": self.gpu_bytes,
            "cpu_bytes": self.cpu_bytes,
            "tokens_per_second_estimate": round(self.speed, 2) or None,
        }


@dataclass(frozen=True)
class Plan:
    """What fits a machine.

    Attributes:
        given: the source as the user wrote it.
        machine: memory and bandwidth of the plan.
        best: the recommended row; None if nothing fits.
        longest: the longest context, in tokens, that the best row has memory for.
        bandwidth: by device, bytes per second and where the figure is from.
        speeds: stored speeds of the devices, by name; empty without them.
        remedies: changes that make the smallest type fit: option, type, bytes of memory.
        for_phone: the commands set up Termux.
        imatrix: importance matrix of the GGUF types.
        target_size: bytes of the largest file that fits as a whole on the GPU, or without one into memory; None if it
            is above 8.5 bits per weight or cannot be made.
        projector: the projector that the plan reserves memory for.
    """

    given: str
    source: Source
    machine: Machine
    context: Context
    budget: Budget
    rows: tuple[Row, ...]
    best: Row | None
    longest: int = 0
    bandwidth: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    speeds: Mapping[str, DeviceSpeed] = field(default_factory=dict)
    remedies: tuple[tuple[str, str, int], ...] = ()
    for_phone: bool = False
    imatrix: Path | None = None
    target_size: int | None = None
    projector: PlannedProjector | None = None

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.n_elements for tensor in self.source.model.tensors)

    def commands(self) -> list[str]:
        """The commands that make the best type and run it; empty if nothing fits."""
        return commands(self)

    def document(self) -> dict[str, Any]:
        """The plan as JSON; sizes in bytes."""
        shape, context = self.source.shape, self.context
        return {
            "source": self.given,
            "name": self.source.model.name,
            "architecture": shape.arch,
            "parameters": self.parameters,
            "layers": shape.n_layer,
            "trained_context": shape.context or None,
            "exact_sizes": self.source.exact,
            "imatrix": None if self.imatrix is None else str(self.imatrix),
            "budget": {
                "ram": self.machine.ram,
                "vram": self.machine.vram,
                "vrams": list(self.budget.rooms),
                "unified": self.machine.unified,
                "gpu": self.machine.gpu_name or None,
            },
            "context": {
                **{name: value for name, value in vars(context).items() if name != "split"},
                "gpu_layers": None,
                "flash": context.flash_on,
            },
            "assumed": {
                "gpu_overhead": GPU_OVERHEAD,
                "bandwidth": {
                    device: {"bytes_per_second": round(pace), "from": origin}
                    for device, (pace, origin) in self.bandwidth.items()
                },
            },
            "types": [row.document() for row in self.rows],
            "best": None if self.best is None else self.best.offer.label,
            "longest_context": self.longest or None,
            "target_size": self.target_size,
            "commands": self.commands(),
            "missing": None if self.best is not None else self.missing(),
            "notes": list(self.notes()),
            **({"projector": self.projector.document(self.machine)} if self.projector else {}),
        }

    def missing(self) -> dict[str, Any] | None:
        """The row that is nearest to fitting, the missing bytes and remedies; None if no type is possible."""
        rows = [row for row in self.rows if not row.offer.why_not]
        if not rows:
            return None
        row = min(rows, key=lambda row: row.missing)
        return {
            "type": row.offer.label,
            "bytes": row.missing,
            "needs": {"ram": row.cpu_bytes, **({"vram": row.gpu_bytes} if row.gpu_bytes else {})},
            "remedies": [{"change": change, "type": label, "bytes": size} for change, label, size in self.remedies],
        }

    def notes(self) -> Iterator[str]:
        """The limits of the figures, one sentence each."""
        yield from self.source.notes
        if self.projector is not None:
            yield self.projector.note(self.machine)
        several = [name for name in gpu_names(len(self.budget.rooms)) if name in self.bandwidth]
        devices = ["CPU", *((several or ["GPU"]) if self.machine.vram else [])]
        bandwidths = listed(
            f"{pace / 1e9:.3g} GB/s ({device}, {origin})"
            for device, (pace, origin) in ((device, self.bandwidth[device]) for device in devices)
        )
        if not self.source.shape.traits.encoder:
            yield f"tokens/s are an estimate for the first tokens of a chat: bytes read per token at {bandwidths}"
        if self.best is not None and self.best.fit is not None and self.machine.vram and not self.best.fit.memory.gpus:
            yield "the plan leaves the GPU out: even without layers on it, llama.cpp needs more memory than it has"
        elif self.machine.vram:
            every = " of each GPU" if self.budget.vrams else ""
            yield f"GPU memory includes an assumed {GPU_OVERHEAD / 2**30:.1g} GiB for the CUDA context{every}"
            if self.machine.unified:
                yield "CPU and GPU share the memory; the GPU is assumed to take at most three quarters of it"
        for row in self.rows:
            if row.offer.is_folder and row.devices:
                (gpu,) = row.devices
                parts = f"weights {human_bytes(gpu.weights)}, KV cache {human_bytes(gpu.kv)} and the CUDA context"
                yield f"{row.offer.label} includes {parts}; the runtime's workspace is extra, a few GB in vLLM"
                if row.offer.group not in (0, row.offer.usual_group):
                    yield (
                        f"{row.offer.label} is planned in groups of {row.offer.group} inputs, because"
                        f" {row.offer.usual_group}"
                        f" do not divide every width of this model; convert it with --group-size {row.offer.group}"
                    )
        if self.source.shape.context and self.context.n_ctx > self.source.shape.context:
            yield f"the model is trained for {self.source.shape.context} tokens; longer texts may lose quality"
        if any(row.fit is not None and row.fit.memory.cpu.repacked for row in self.rows):
            yield (
                "llama.cpp repacks part of the weights for this CPU while it loads them; the file's pages briefly take"
                " memory too. --no-repack avoids this, here and in llama.cpp"
            )
        if not has_checked_plan(self.source.shape.arch):
            yield f"the compute buffer of {self.source.shape.arch} is an estimate: no test compares this architecture"
