"""Estimated generation speed: what each device does for one token, and how fast it does it.

    seconds = sum over devices of
        bytes / bandwidth + operations * operation + transfers * transfer + described * description + token

`plan`, `run`, `serve` and `measure --speed` use this sum. Without measured overheads the last four terms are 0,
and one token reads every active weight once, at the memory bandwidth. Prompts are bound by arithmetic, which is not
estimated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from quantkit.planning.context import Context
from quantkit.planning.devices import CPU, cache_devices, gpu_names, weight_devices
from quantkit.planning.graph import prompt_graph
from quantkit.planning.memory import kv_bytes, norm_devices, product_devices
from quantkit.planning.planned_tensors import PlannedTensor
from quantkit.planning.schedule import ScheduleOptions, place
from quantkit.planning.shape import ModelShape
from quantkit.planning.splits import splits_of

EARLY = 512
"""Tokens of context of the estimate, as early in a conversation."""
KV = "KV cache"
"""The name of the KV cache among the types of the bytes that are read."""


@dataclass(frozen=True)
class Work:
    """What one device does for one token.

    Attributes:
        moved: bytes that it reads, by tensor type; those of the KV cache under `KV`.
        operations: operations of the compute graph.
        transfers: times that the computation comes to it from another device.
        described: tensors whose descriptions are sent to it (planning.splits).
    """

    moved: Mapping[str, int] = field(default_factory=dict)
    operations: int = 0
    transfers: int = 0
    described: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of all types."""
        return sum(self.moved.values())


@dataclass(frozen=True)
class DeviceSpeed:
    """The speed of a device. Seconds that were not measured are 0.

    Attributes:
        bandwidth: bytes per second that it reads.
        by_type: bytes per second of the matrices of a tensor type, where they differ: kernels that unpack weights can
            be slower than the memory.
        operation: seconds of each operation besides the bytes that it reads.
        transfer: seconds of each time that the computation comes to it, with the copies that it needs.
        description: seconds of each tensor whose description is sent to it; 0 of a device in this machine.
        token: seconds of each token in which the device has a part.
    """

    bandwidth: float
    by_type: Mapping[str, float] = field(default_factory=dict)
    operation: float = 0.0
    transfer: float = 0.0
    description: float = 0.0
    token: float = 0.0

    def seconds(self, work: Work) -> float:
        """Seconds of the device's part of a token."""
        if not (work.bytes or work.operations):
            return 0.0
        reading = sum(size / self.by_type.get(kind, self.bandwidth) for kind, size in work.moved.items() if size)
        moving = work.transfers * self.transfer + work.described * self.description
        return reading + work.operations * self.operation + moving + self.token

    @property
    def has_overheads(self) -> bool:
        """Whether the operations and transfers of a token count."""
        return bool(self.operation or self.transfer)


def token_work(
    shape: ModelShape,
    tensors: Sequence[PlannedTensor],
    context: Context,
    filled: int = EARLY,
    *,
    has_gpu: bool = True,
    operations: bool = False,
) -> dict[str, Work]:
    """What each device does for one token: it reads the chosen experts only, and one row of the embedding.

    Args:
        filled: tokens of context before it.
        has_gpu: llama.cpp finds a GPU.
        operations: count the operations and transfers too; this draws the graph of a token.
    """
    placed = context if has_gpu else replace(context, gpu_layers=0, cpu_moe=0, split=())
    where = weight_devices(shape, tensors, placed)
    kv = kv_bytes(shape, placed)
    moved: dict[str, dict[str, int]] = {device: {} for device in kv}
    for tensor in tensors:
        size = tensor.nbytes
        if "_exps." in tensor.name and shape.n_expert_used and len(tensor.shape) > 2:
            size = size * shape.n_expert_used // tensor.shape[0]
        if tensor.name == "token_embd.weight" and "output.weight" in shape.tensors:
            size //= tensor.shape[0]
        if devices := where[tensor.name]:  # layers for a later token are on no device
            of_device = moved[devices[-1]]
            of_device[tensor.type.name] = of_device.get(tensor.type.name, 0) + size
    cells = min(filled, placed.cells)
    for device, size in kv.items():
        moved[device][KV] = size * cells // placed.cells
    counts = _counts(shape, tensors, placed) if operations else {}
    return {device: Work(sizes, *counts.get(device, (0, 0, 0))) for device, sizes in moved.items()}


def _counts(shape: ModelShape, tensors: Sequence[PlannedTensor], context: Context) -> dict[str, tuple[int, int, int]]:
    """Operations, transfers and described tensors of each device in the graph of one token."""
    one = replace(context, n_batch=1, n_ubatch=1)
    devices = product_devices(shape, tensors, one)
    names = gpu_names(max(len(one.split), 1))
    options = ScheduleOptions(names, offload=False, norms=norm_devices(shape, one))
    # bytes of a weight matter only where it is copied, which a single token never needs
    graph, device = place(
        prompt_graph(shape, one), devices, dict.fromkeys(devices, 0), cache_devices(shape, one), options
    )
    # the computation begins on the CPU, with the row of the embedding
    return {
        name: (part.operations, part.splits - (name == CPU), 0 if name == CPU else part.described)
        for name, part in splits_of(graph, device).items()
    }


def token_seconds(work: Mapping[str, Work], speeds: Mapping[str, DeviceSpeed]) -> float:
    """Seconds of a token; the devices work one after the other.

    A GPU of several that has no entry of its own has that of `GPU`.
    """
    return sum(speeds.get(device, speeds.get("GPU", _NONE)).seconds(part) for device, part in work.items())


def tokens_per_second(work: Mapping[str, Work], speeds: Mapping[str, DeviceSpeed]) -> float:
    """Tokens per second; see `token_seconds`."""
    seconds = token_seconds(work, speeds)
    return 1 / seconds if seconds else 0.0


_NONE = DeviceSpeed(float("inf"))
