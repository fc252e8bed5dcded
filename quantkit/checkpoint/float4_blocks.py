"""DeepSeek-V4's experts in MXFP4, seen as the tensors that gpt-oss has of the same bytes.

A published linear NAME has NAME.weight, int8 (rows, columns / 2), and NAME.scale, E8M0 (rows, columns / 32). The model
sees NAME_blocks, uint8 (rows, columns / 32, 16), and NAME_scales, uint8 (rows, columns / 32). The order of the bytes
is the same: a byte has two neighbours, the first in its low half.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.quantized.settings import quantization_config
from quantkit.checkpoint.tensor import TensorInfo
from quantkit.errors import CheckpointError

_BLOCK_BYTES = 16


def as_blocks(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], where: str) -> dict[str, TensorInfo]:
    """`tensors` with the blocks and scales of packed linears in place of their weights.

    Raises:
        CheckpointError: a packed linear has no scale, or its shape does not fit.
    """
    if quantization_config(config).get("quant_method") != "fp8":
        return dict(tensors)
    result = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dtype != "I8" or len(tensor.shape) != 2 or not name.endswith(".weight"):
            continue
        stem = name.removesuffix(".weight")
        scale = tensors.get(f"{stem}.scale")
        if scale is None:
            raise CheckpointError(
                f"tensor {shown(name)} of {where} is in MXFP4 but its scale {shown(f'{stem}.scale')} is missing;"
                " download the checkpoint again"
            )
        rows, n_bytes = tensor.shape
        blocks = n_bytes // _BLOCK_BYTES
        if n_bytes % _BLOCK_BYTES or scale.shape != (rows, blocks) or scale.dtype not in ("F8_E8M0", "U8"):
            raise CheckpointError(
                f"scale {shown(scale.name)} of {where} is {scale.dtype} {list(scale.shape)}, which does not fit tensor"
                f" {shown(name)} {list(tensor.shape)} in blocks of {_BLOCK_BYTES} bytes; download it again"
            )
        del result[name], result[scale.name]
        for new in (
            replace(tensor, name=f"{stem}_blocks", dtype="U8", shape=(rows, blocks, _BLOCK_BYTES)),
            replace(scale, name=f"{stem}_scales", dtype="U8"),
        ):
            result[new.name] = new
    return result


def packed_weights(tensors: Iterable[TensorInfo]) -> dict[str, int]:
    """The weights that each packed linear stands for, by its stored tensors; a scale in E8M0 stands for none."""
    types = {tensor.name: tensor for tensor in tensors}
    counts = {name: 0 for name, tensor in types.items() if tensor.dtype == "F8_E8M0"}
    for scale in tuple(counts):
        weight = types.get(f"{scale.removesuffix('.scale')}.weight")
        if weight is not None and weight.dtype == "I8":
            counts[weight.name] = 2 * weight.n_params
    return counts
