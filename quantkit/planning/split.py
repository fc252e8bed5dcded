"""Several GPUs: how many layers each of them takes, so that all are filled to the same degree."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from quantkit.planning.context import Context
from quantkit.planning.devices import CPU, first_gpu_layer, gpu_names, weight_devices
from quantkit.planning.memory import GPU_OVERHEAD, Memory, kv_of_layers, plan_memory
from quantkit.planning.planned_tensors import PlannedTensor
from quantkit.planning.shape import ModelShape

if TYPE_CHECKING:
    from quantkit.planning.budget import Budget

_STEPS = 24
_ROUNDS = 3


def split_memory(
    shape: ModelShape,
    tensors: Sequence[PlannedTensor],
    context: Context,
    budget: "Budget",
    compute: Mapping[str, int] | None = None,
) -> Memory:
    """The memory of a run with the layers of `context` on the GPUs of `budget`, split between them.

    The split depends on the compute buffers, and they depend on the split: both are repeated until they agree.
    `compute`: known or estimated compute buffers in bytes, by device; None computes them.
    """
    rooms = budget.rooms

    def planned(context: Context, compute: Mapping[str, int] | None) -> Memory:
        return plan_memory(shape, tensors, context, has_gpu=True, cpu_features=budget.cpu_features, compute=compute)

    if len(rooms) < 2:
        return planned(replace(context, split=()), compute)
    layers = min(context.gpu_layers, shape.n_layer + 1)
    sizes = layer_bytes(shape, tensors, replace(context, gpu_layers=layers))
    buffers = dict(compute or {})
    best: Memory | None = None
    for _ in range(_ROUNDS):
        used = [GPU_OVERHEAD + buffers.get(name, 0) for name in gpu_names(len(rooms))]
        split = even_split(sizes, rooms, used)
        if best is not None and split == best.context.split:
            break
        memory = planned(replace(context, gpu_layers=layers, split=split), compute)
        if best is None or budget.missing_on_gpus(memory) < budget.missing_on_gpus(best):
            best = memory
        if compute is not None:
            break
        buffers = memory.compute
    assert best is not None
    return best


def layer_bytes(shape: ModelShape, tensors: Sequence[PlannedTensor], context: Context) -> list[int]:
    """Bytes of weights and KV cache of each layer on a GPU, in order; the last entry is the output's."""
    start, last = first_gpu_layer(shape, context), shape.n_layer
    one = replace(context, split=())
    where = weight_devices(shape, tensors, one)
    sizes = [0] * (last + 1)
    for tensor in tensors:
        if where[tensor.name] and where[tensor.name][-1] != CPU:
            first = start if tensor.name.startswith("per_layer_") else last
            sizes[first if tensor.layer is None else tensor.layer] += tensor.gpu_nbytes
    if context.kv_on_gpu:
        sizes[:last] = [size + kv for size, kv in zip(sizes, kv_of_layers(shape, context), strict=False)]
    return sizes[start:]


def even_split(sizes: Sequence[int], rooms: Sequence[int], used: Sequence[int]) -> tuple[int, ...]:
    """The number of consecutive layers for each GPU that makes the fullest GPU as empty as possible.

    Args:
        sizes: bytes of each layer, in order.
        rooms: bytes of each GPU.
        used: bytes of each GPU that do not depend on its layers.
    """

    def fill(share: float) -> tuple[int, ...] | None:
        """As many layers on each GPU in turn as take up to `share` of it; None if layers are left."""
        counts, at = [], 0
        for room, fixed in zip(rooms, used, strict=True):
            free, first = share * room - fixed, at
            while at < len(sizes) and sizes[at] <= free:
                free -= sizes[at]
                at += 1
            counts.append(at - first)
        return tuple(counts) if at == len(sizes) else None

    low, high = 0.0, 1.0
    while fill(high) is None:
        low, high = high, 2 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if fill(middle) is not None else (middle, high)
    counts = fill(high)
    assert counts is not None
    return counts
