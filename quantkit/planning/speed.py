"""Estimated generation speed: one token reads every active weight once, at the memory bandwidth.

The estimate ignores arithmetic, which dominates prompts, and synchronisation between devices.
"""

from collections.abc import Mapping, Sequence

from quantkit.planning.context import Context
from quantkit.planning.devices import weight_devices
from quantkit.planning.memory import PlannedTensor, kv_bytes
from quantkit.planning.shape import ModelShape

EARLY = 512
"""Tokens of context of the estimate, as early in a conversation."""


def bytes_per_token(
    shape: ModelShape, tensors: Sequence[PlannedTensor], context: Context, filled: int = EARLY
) -> dict[str, int]:
    """Bytes that each device reads for one token: only the chosen experts, and one row of the embedding.

    `filled`: tokens of context before it.
    """
    where = weight_devices(shape, tensors, context)
    kv = kv_bytes(shape, context)
    moved = dict.fromkeys(kv, 0)
    for tensor in tensors:
        size = tensor.nbytes
        if "_exps." in tensor.name and shape.n_expert_used and len(tensor.shape) > 2:
            size = size * shape.n_expert_used // tensor.shape[0]
        if tensor.name == "token_embd.weight" and "output.weight" in shape.tensors:
            size //= tensor.shape[0]
        if devices := where[tensor.name]:  # layers for a later token are on no device
            moved[devices[-1]] += size
    cells = min(filled, context.cells)
    for device in moved:
        moved[device] += kv[device] * cells // context.cells
    return moved


def tokens_per_second(moved: Mapping[str, int], bandwidth: Mapping[str, float]) -> float:
    """Tokens per second; the devices work one after the other, at `bandwidth` bytes per second.

    A GPU of several that has no entry of its own has that of `GPU`.
    """
    seconds = sum(size / bandwidth.get(device, bandwidth.get("GPU", 0.0)) for device, size in moved.items() if size)
    return 1 / seconds if seconds else 0.0
