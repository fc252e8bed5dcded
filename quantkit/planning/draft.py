"""The memory of what drafts tokens (speculative decoding): a draft model, or the MTP layer of a file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantkit.planning.context import Context
from quantkit.planning.memory import compute_bytes, kv_of_layers, plan_memory, state_bytes
from quantkit.planning.sources import Source, open_source, tensors_as_they_are


@dataclass(frozen=True)
class DraftMemory:
    """Bytes that a draft takes of each GPU. `gpu`: the GPU that has all of it; None for the CPU."""

    taken: tuple[int, ...]
    gpu: int | None


def draft_memory(
    model: Path, draft: Path | None, context: Context, rooms: Sequence[int], *, mtp: bool, count: int
) -> DraftMemory:
    """The memory that drafts for `model` take of GPUs of `rooms` bytes.

    A draft is on the GPU with the most memory if it fits there, else on the CPU. The MTP layer of the model itself is
    on the last GPU, where its output is.

    Args:
        draft: the file of the draft model or MTP layer; None for the MTP layer of `model`.
        count: tokens drafted at a time; llama.cpp keeps a recurrent state for each of them.

    Raises:
        QuantkitError: the plan does not support a file.
    """
    source = open_source(str(model))
    try:
        states = count * sum(state_bytes(source.shape, layer) for layer in source.shape.trunk)
        mtp_memory = mtp_bytes(source, context) if draft is None else 0
    finally:
        source.model.close()
    taken = [states] * len(rooms)
    if draft is None:
        taken[-1] += mtp_memory
        return DraftMemory(tuple(taken), len(rooms) - 1)
    source = open_source(str(draft))
    try:
        size = mtp_bytes(source, context) if mtp else model_bytes(source, context)
    finally:
        source.model.close()
    gpu = max(range(len(rooms)), key=lambda number: rooms[number])
    if size > rooms[gpu]:
        return DraftMemory(tuple(taken), None)
    taken[gpu] += size
    return DraftMemory(tuple(taken), gpu)


def model_bytes(source: Source, context: Context) -> int:
    """Bytes of a whole draft model on a GPU: weights, KV cache and compute buffer."""
    alone = replace(context, gpu_layers=source.shape.n_layer + 1, split=(), cpu_moe=0)
    memory = plan_memory(source.shape, tensors_as_they_are(source.model), alone, has_gpu=True)
    return sum(gpu.buffers for gpu in memory.gpus)


def mtp_bytes(source: Source, context: Context) -> int:
    """Bytes of the MTP layers of a file on a GPU: their weights, their KV caches and their compute buffer.

    Each cache counts as the largest of a layer. The compute buffer is the model's, because an MTP layer has its output.
    """
    shape, tensors = source.shape, tensors_as_they_are(source.model)
    trunk = len(shape.trunk)
    alone = replace(context, gpu_layers=shape.n_layer + 1, split=(), cpu_moe=0)
    weights = sum(tensor.gpu_nbytes for tensor in tensors if tensor.layer is not None and tensor.layer >= trunk)
    kv = (shape.n_layer - trunk) * max(kv_of_layers(shape, alone), default=0)
    return weights + kv + compute_bytes(shape, tensors, alone, has_gpu=True).get("GPU", 0)
