"""Counting parameters from headers: weights, expert weights, and tensors that are only packing."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from quantkit.inspection.description import TensorGroup, Weights

# The names of Granite's fused experts do not contain "experts".
_EXPERT = re.compile(r"(?:^|\.)experts\.|_exps\.|\.block_sparse_moe\.(?:input|output)_linear\.")
# Scales, zero points and indices beside packed weights: AWQ, GPTQ, compressed-tensors, bitsandbytes, f8, MXFP4. And
# tables that a runtime computes.
_NOT_WEIGHTS = re.compile(
    r"(?:^|[._])(?:scales|qzeros|g_idx|weight_scale|weight_scale_inv|weight_scale_2|weight_zero_point|weight_shape"
    r"|weight_g_idx|weight_global_scale|biases|input_scale|input_global_scale|k_scale|v_scale|SCB|absmax|nested_absmax"
    r"|quant_map|nested_quant_map|inv_freq)$"
    r"|\.quant_state\.|\.rotary_emb\.|(?:^|\.)(?:masked_bias|attention\.bias|attn\.bias)$|^rope_(?:freqs|factors)"
)
# Several weights share one stored integer.
_PACKED = re.compile(r"(?:\.qweight|\.weight_packed|_blocks)$")
_HEADS = ("lm_head.weight", "output.weight", "embed_out.weight")
_INTEGER_BITS = {"U8": 8, "I8": 8, "I16": 16, "I32": 32, "U32": 32, "I64": 64}


@dataclass(frozen=True)
class Stored:
    """One tensor as stored: element type, elements, bytes."""

    name: str
    type: str
    elements: int
    bytes: int


def count_weights(
    tensors: Iterable[Stored],
    *,
    experts: int | None = None,
    experts_used: int | None = None,
    tied: bool = False,
    packed_bits: int | None = None,
    counts: Mapping[str, int] | None = None,
) -> Weights | None:
    """The sum of `tensors`; None without tensors.

    `tied`: do not count a stored output head that equals the embedding. `packed_bits`: bits of a weight if several
    share an integer. `counts`: the weights that tensors stand for, by name, where that is known.
    """
    all_, routed, stored = 0, 0, 0
    groups: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for tensor in tensors:
        group = groups[tensor.type]
        group[0] += 1
        group[1] += tensor.elements
        group[2] += tensor.bytes
        stored += tensor.bytes
        known = (counts or {}).get(tensor.name)
        if (known is None and _NOT_WEIGHTS.search(tensor.name)) or (tied and tensor.name.endswith(_HEADS)):
            continue
        weights = _weights(tensor, packed_bits) if known is None else known
        all_ += weights
        if _EXPERT.search(tensor.name):
            routed += weights
    if not groups:
        return None
    idle = routed - routed * experts_used // experts if experts and experts_used and experts_used < experts else 0
    return Weights(
        parameters=all_,
        active_parameters=all_ - idle,
        bytes=stored,
        bits_per_weight=8 * stored / max(all_, 1),
        groups=tuple(
            TensorGroup(kind, *counts) for kind, counts in sorted(groups.items(), key=lambda item: -item[1][2])
        ),
    )


def _weights(tensor: Stored, packed_bits: int | None) -> int:
    """The number of weights in a tensor's elements."""
    width = _INTEGER_BITS.get(tensor.type)
    if width is None:
        return tensor.elements
    if tensor.name.endswith("_blocks"):  # MXFP4: two to a byte
        return 2 * tensor.elements
    words = _PACKED.search(tensor.name) or tensor.type == "U32"
    if packed_bits and (words or (packed_bits < 8 and tensor.type == "U8")):
        # At 3 bits, three integers hold 32 weights.
        return tensor.elements * width // packed_bits
    return tensor.elements
