"""The linears of compressed-tensors folders of 4-bit floats (NVFP4, MXFP4)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.checkpoint.dequantize import float4_values, power_scales
from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.tensor import TensorInfo
from quantkit.errors import CheckpointError
from quantkit.forward.weights import Array
from quantkit.packed.scheme import PackedLinear, Scheme, StoredTensors

# layout -> inputs that share a scale, dtype of the scales
_LAYOUTS = {"nvfp4-pack-quantized": (16, "F8_E4M3"), "mxfp4-pack-quantized": (32, "U8")}


@dataclass
class Float4Scheme(Scheme):
    """w = float4 * scale, in NVFP4 divided by weight_global_scale."""

    group: int
    scale_dtype: str
    bits: int = 4
    method: str = "compressed-tensors"
    parts: tuple[str, ...] = ("weight_packed", "weight_scale", "weight_global_scale")

    def linears(self, tensors: Mapping[str, TensorInfo], folder: Path) -> list[PackedLinear]:
        linears = []
        for tensor in tensors.values():
            if not tensor.name.endswith(".weight_packed"):
                continue
            name = tensor.name.removesuffix(".weight_packed")
            scale, overall = (tensors.get(f"{name}.{part}") for part in self.parts[1:])
            wanted = self.scale_dtype == "F8_E4M3"
            if scale is None or scale.dtype != self.scale_dtype or (overall is None) == wanted:
                raise CheckpointError(f"linear {shown(name)} of {folder} lacks its scales; download it again")
            if tensor.dtype != "U8" or scale.shape != (tensor.shape[0], tensor.shape[-1] * 2 // self.group):
                raise CheckpointError(
                    f"linear {shown(name)} of {folder} has weight_packed {list(tensor.shape)} and weight_scale"
                    f" {list(scale.shape)}, which do not match group size {self.group}; download it again"
                )
            linears.append(PackedLinear(name, tensor.shape[0], tensor.shape[1] * 2, scale.shape[1]))
        if not linears:
            raise CheckpointError(
                f"config.json of {folder} states quantization but no packed weights exist; download it again"
            )
        return linears

    def dequantized(self, stored: StoredTensors, linear: PackedLinear, start: int, stop: int) -> Array:
        matrix = float4_values(stored.stored_rows(f"{linear.name}.weight_packed", start, stop))
        scales = stored.stored_rows(f"{linear.name}.weight_scale", start, stop)
        if self.scale_dtype == "U8":
            factors = power_scales(scales)
        else:
            factors = scales.astype(np.float32) / stored.stored(f"{linear.name}.weight_global_scale").reshape(())
        if not np.isfinite(factors).all():
            raise CheckpointError(
                f"tensor {shown(linear.name)}.weight_scale of {stored.folder} contains NaN or infinity"
            )
        by_group = matrix.reshape(len(matrix), linear.n_groups, -1)
        by_group *= factors[:, :, None]
        return matrix


def read_float4(quantization: Mapping[str, Any], where: str) -> Float4Scheme | None:
    """The scheme of a folder of 4-bit floats; None for another method or layout."""
    layout = quantization.get("format")
    if quantization.get("quant_method") != "compressed-tensors" or layout not in _LAYOUTS:
        return None
    return Float4Scheme(*_LAYOUTS[layout])
