"""The linears of folders of 4-bit floats: compressed-tensors' NVFP4 and MXFP4, and ModelOpt's NVFP4."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from quantkit.checkpoint.dequantize import float4_values, power_scales
from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.quantized.scheme import (
    ACTIVATION_PARTS,
    Array,
    PackedLinear,
    Scheme,
    StoredTensors,
    require_finite,
)
from quantkit.checkpoint.tensor import TensorInfo
from quantkit.errors import CheckpointError

FLOAT4_LAYOUTS = ("nvfp4-pack-quantized", "mxfp4-pack-quantized")


@dataclass
class Float4Scheme(Scheme):
    """w = float4 * scale. NVFP4 also has a scale of the matrix, the tensor `overall`, that divides or multiplies.

    `packed` is the tensor of the floats, two in a byte.
    """

    group: int
    scale_dtype: str
    layout: str | None
    packed: str = "weight_packed"
    overall: str | None = None
    divides: bool = True
    bits: int = 4
    method: str = "compressed-tensors"

    def __post_init__(self) -> None:
        self.parts = (self.packed, "weight_scale", *((self.overall,) if self.overall else ()), *ACTIVATION_PARTS)

    @property
    def title(self) -> str:
        return f"{self.method} {str(self.layout).partition('-')[0].upper()} 4 bit, group {self.group}"

    def linears(self, tensors: Mapping[str, TensorInfo], where: str) -> list[PackedLinear]:
        linears = []
        for tensor in tensors.values():
            if not tensor.name.endswith(f".{self.packed}") or tensor.dtype != "U8":
                continue
            name = tensor.name.removesuffix(f".{self.packed}")
            scale = tensors.get(f"{name}.weight_scale")
            overall = tensors.get(f"{name}.{self.overall}") if self.overall else None
            for part, stated in (("weight_scale", scale), (self.overall, overall)):
                if part is not None and stated is None:
                    raise CheckpointError(f"linear {shown(name)} of {where} has no {part}; download it again")
            assert scale is not None
            rows, width = (tensor.shape[0], tensor.shape[-1] * 2) if len(tensor.shape) == 2 else (0, 0)
            fits = scale.dtype == self.scale_dtype and (overall is None or overall.n_params == 1)
            if not fits or not rows or scale.shape != (rows, width // self.group):
                raise CheckpointError(
                    f"linear {shown(name)} of {where} has {self.packed} {list(tensor.shape)} and weight_scale"
                    f" {scale.dtype} {list(scale.shape)}, which do not match group size {self.group}; download it again"
                )
            linears.append(PackedLinear(name, rows, width, scale.shape[1]))
        for lone in tensors if self.overall is not None else ():
            name = lone.removesuffix(f".{self.overall}")
            if name != lone and f"{name}.{self.packed}" not in tensors:
                raise CheckpointError(f"linear {shown(name)} of {where} has no {self.packed}; download it again")
        return linears

    def dequantized(self, stored: StoredTensors, linear: PackedLinear, start: int, stop: int) -> Array:
        matrix = float4_values(stored.stored_rows(f"{linear.name}.{self.packed}", start, stop))
        scales = stored.stored_rows(f"{linear.name}.weight_scale", start, stop)
        factors = power_scales(scales) if self.scale_dtype == "U8" else scales.astype(np.float32)
        if self.overall is not None:
            overall = stored.stored(f"{linear.name}.{self.overall}").astype(np.float32).reshape(())
            with np.errstate(divide="ignore", invalid="ignore"):
                factors = factors / overall if self.divides else factors * overall
        require_finite(factors, f"{linear.name}.weight_scale", stored.where)
        by_group = matrix.reshape(len(matrix), linear.n_groups, -1)
        by_group *= factors[:, :, None]
        return matrix


def compressed_float4(layout: str) -> Float4Scheme:
    """The scheme of a layout of FLOAT4_LAYOUTS."""
    if layout.startswith("nvfp4"):
        return Float4Scheme(16, "F8_E4M3", layout, overall="weight_global_scale")
    return Float4Scheme(32, "U8", layout)


def modelopt_float4() -> Float4Scheme:
    """NVIDIA ModelOpt's NVFP4: the scale of the matrix multiplies."""
    return Float4Scheme(
        16, "F8_E4M3", "NVFP4", packed="weight", overall="weight_scale_2", divides=False, method="modelopt"
    )
