"""The linears of folders with one 8-bit integer a weight: compressed-tensors' int-quantized and naive-quantized.

bitsandbytes' LLM.int8() stores the same, with the largest absolute value of each row in place of its scale.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.quantized.scheme import (
    ACTIVATION_PARTS,
    FLOATS,
    Array,
    PackedLinear,
    Scheme,
    StoredTensors,
    require_finite,
)
from quantkit.checkpoint.tensor import TensorInfo
from quantkit.errors import CheckpointError


@dataclass
class PlainIntegers(Scheme):
    """w = (q - zero point) * scale / `divisor`. The scale is that of the matrix, of a row, or of a group of inputs."""

    method: str
    scale: str = "weight_scale"
    divisor: int = 1
    group: int = -1
    bits: int = 8
    layout: str | None = "int-quantized"
    others: tuple[str, ...] = ("weight_zero_point", *ACTIVATION_PARTS)

    def __post_init__(self) -> None:
        self.parts = ("weight", self.scale, *self.others)

    def linears(self, tensors: Mapping[str, TensorInfo], where: str) -> list[PackedLinear]:
        linears = []
        for tensor in tensors.values():
            if tensor.dtype != "I8" or not tensor.name.endswith(".weight"):
                continue
            name = tensor.name.removesuffix(".weight")
            scale, zero = (tensors.get(f"{name}.{part}") for part in (self.scale, "weight_zero_point"))
            if scale is None or scale.dtype not in FLOATS or len(tensor.shape) != 2:
                raise CheckpointError(f"linear {shown(name)} of {where} has no {self.scale}; download it again")
            n_out, n_in = tensor.shape
            groups = scale.n_params // n_out if scale.n_params > 1 else 1
            fits = scale.n_params == 1 or (scale.shape[0] == n_out and scale.n_params == n_out * groups)
            if not fits or n_in % groups or (zero is not None and zero.n_params != scale.n_params):
                raise CheckpointError(
                    f"linear {shown(name)} of {where} has weight {list(tensor.shape)} and {self.scale}"
                    f" {list(scale.shape)}, which do not match; download it again"
                )
            linears.append(PackedLinear(name, n_out, n_in, groups))
        return linears

    def dequantized(self, stored: StoredTensors, linear: PackedLinear, start: int, stop: int) -> Array:
        matrix = stored.stored_rows(f"{linear.name}.weight", start, stop).astype(np.float32)
        scales = self._of_rows(stored, linear, self.scale, start, stop) / np.float32(self.divisor)
        require_finite(scales, f"{linear.name}.{self.scale}", stored.where)
        by_group = matrix.reshape(len(matrix), linear.n_groups, -1)
        if f"{linear.name}.weight_zero_point" in stored.tensors:
            by_group -= self._of_rows(stored, linear, "weight_zero_point", start, stop)
        by_group *= scales
        return matrix

    def _of_rows(self, stored: StoredTensors, linear: PackedLinear, part: str, start: int, stop: int) -> Array:
        """The values of a part for rows start..stop: (stop - start, n_groups, 1), or one for all."""
        values = stored.stored(f"{linear.name}.{part}").astype(np.float32)
        if values.size == 1:
            return values.reshape(1, 1, 1)
        return values.reshape(linear.n_out, linear.n_groups, 1)[start:stop]


def int8_of_bitsandbytes() -> PlainIntegers:
    """LLM.int8() as transformers saves it: SCB has the largest absolute value of each row, which is stored as 127."""
    return PlainIntegers("bitsandbytes", "SCB", 127, layout="int8", others=("weight_format",))
