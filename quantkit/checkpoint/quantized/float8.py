"""The linears of FP8 checkpoints: a scale for each row (compressed-tensors, ModelOpt), or for each block (DeepSeek)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantkit.checkpoint.float8 import SCALE_DTYPES, apply_scales, block_of, to_float32
from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.quantized.scheme import ACTIVATION_PARTS, Array, PackedLinear, Scheme, StoredTensors
from quantkit.checkpoint.tensor import FLOAT8, TensorInfo
from quantkit.errors import CheckpointError


@dataclass
class Float8Scheme(Scheme):
    """FP8 weights; `scale` is the suffix of the tensor of scales."""

    method: str
    scale: str
    block: tuple[int, int] = (128, 128)
    bits: int = 8
    group: int = -1
    layout: str | None = None

    def __post_init__(self) -> None:
        self.parts = ("weight", self.scale, *ACTIVATION_PARTS)

    def linears(self, tensors: Mapping[str, TensorInfo], where: str) -> list[PackedLinear]:
        linears = []
        for tensor in tensors.values():
            if tensor.dtype not in FLOAT8 or not tensor.name.endswith(".weight"):
                continue
            name = tensor.name.removesuffix(".weight")
            scale = tensors.get(f"{name}.{self.scale}")
            if scale is None or scale.dtype not in SCALE_DTYPES or len(tensor.shape) != 2:
                raise CheckpointError(f"linear {shown(name)} of {where} has no {self.scale}; download it again")
            if block_of(tensor, scale, self.block) is None:
                raise CheckpointError(
                    f"linear {shown(name)} of {where} has weight {list(tensor.shape)} and {self.scale}"
                    f" {list(scale.shape)}, which do not match; download it again"
                )
            linears.append(PackedLinear(name, tensor.shape[0], tensor.shape[1], scale.row_length))
        return linears

    def dequantized(self, stored: StoredTensors, linear: PackedLinear, start: int, stop: int) -> Array:
        weight, scale = stored.tensors[f"{linear.name}.weight"], stored.tensors[f"{linear.name}.{self.scale}"]
        block = block_of(weight, scale, self.block)
        assert block is not None
        matrix = to_float32(stored.stored_rows(weight.name, start, stop).view(np.uint8), weight.dtype)
        scales = stored.stored(scale.name).astype(np.float32)
        apply_scales(matrix, scales.reshape(-1, -(-linear.n_in // block[1])), start, linear.n_out, block)
        if not np.isfinite(matrix).all():
            raise CheckpointError(
                f"linear {shown(linear.name)} of {stored.where} contains NaN or infinity; download it again"
            )
        return matrix


def read_float8(quantization: Mapping[str, Any], where: str) -> Float8Scheme | None:
    """The scheme of an FP8 checkpoint of DeepSeek's kind, or with a scale a row; None for another method.

    Raises CheckpointError for a block size that makes no sense.
    """
    method = str(quantization.get("quant_method"))
    if method == "fbgemm_fp8":
        return Float8Scheme(method, "weight_scale")
    if method != "fp8":
        return None
    size = quantization.get("weight_block_size") or [128, 128]
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
        raise CheckpointError(f"{where} has weight_block_size {shown(str(size))}, which is not two positive integers")
    return Float8Scheme("fp8", "weight_scale_inv", (size[0], size[1]), group=size[1])
