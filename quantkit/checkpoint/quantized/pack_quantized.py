"""The linears of compressed-tensors folders with integers in 32-bit words (pack-quantized)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from quantkit.checkpoint.dequantize import unpack_stream
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
class PackedIntegers(Scheme):
    """Integers of `bits` bits, stored plus 2^(bits - 1); `group` inputs share a scale and, unless symmetric, a zero.

    With `weight_g_idx` (groups by activation order) it has the group of each input.
    """

    bits: int
    group: int
    symmetric: bool
    method: str = "compressed-tensors"
    parts: tuple[str, ...] = (
        "weight_packed",
        "weight_scale",
        "weight_shape",
        "weight_zero_point",
        "weight_g_idx",
        *ACTIVATION_PARTS,
    )
    layout: str | None = "pack-quantized"

    def linears(self, tensors: Mapping[str, TensorInfo], where: str) -> list[PackedLinear]:
        linears = []
        for tensor in tensors.values():
            if not tensor.name.endswith(".weight_packed"):
                continue
            name = tensor.name.removesuffix(".weight_packed")
            scale, zero = tensors.get(f"{name}.weight_scale"), tensors.get(f"{name}.weight_zero_point")
            if scale is None or len(scale.shape) != 2 or scale.dtype not in FLOATS or len(tensor.shape) != 2:
                raise CheckpointError(f"linear {shown(name)} of {where} has no weight_scale; download it again")
            n_out, groups = scale.shape
            n_in = groups * self.group if self.group != -1 else tensor.shape[1] * 32 // self.bits
            packed = (n_out, -(-n_in * self.bits // 32))
            zeros = None if self.symmetric else (-(-n_out * self.bits // 32), groups)
            stated = None if zero is None else zero.shape
            if (tensor.dtype, tensor.shape, stated) != ("I32", packed, zeros):
                raise CheckpointError(
                    f"linear {shown(name)} of {where} has weight_packed {list(tensor.shape)}, weight_scale"
                    f" {list(scale.shape)} and weight_zero_point {None if stated is None else list(stated)}; these"
                    f" do not match {self.bits} bits and group size {self.group}, so download it again"
                )
            order = tensors.get(f"{name}.weight_g_idx")
            if order is not None and (order.dtype not in ("I32", "I64") or order.shape != (n_in,)):
                raise CheckpointError(
                    f"tensor {shown(order.name)} of {where} is {order.dtype} {list(order.shape)}, not the group of"
                    f" {n_in} inputs; download it again"
                )
            linears.append(PackedLinear(name, n_out, n_in, groups))
        return linears

    def dequantized(self, stored: StoredTensors, linear: PackedLinear, start: int, stop: int) -> Array:
        words = stored.stored_rows(f"{linear.name}.weight_packed", start, stop)
        scales = stored.stored_rows(f"{linear.name}.weight_scale", start, stop).astype(np.float32)
        require_finite(scales, f"{linear.name}.weight_scale", stored.where)
        matrix = unpack_stream(words, self.bits, linear.n_in).astype(np.float32)
        zeros = np.full((stop - start, linear.n_groups), 1 << (self.bits - 1), np.float32)
        if not self.symmetric:
            columns = stored.stored(f"{linear.name}.weight_zero_point").T
            zeros = unpack_stream(columns, self.bits, linear.n_out)[:, start:stop].T.astype(np.float32)
        if f"{linear.name}.weight_g_idx" in stored.tensors:
            groups = stored.stored(f"{linear.name}.weight_g_idx").astype(np.int64)
            # compressed-tensors leaves -1 everywhere where no activation order was used
            if groups.size and groups.max() >= 0:
                if groups.min() < 0 or groups.max() >= linear.n_groups:
                    raise CheckpointError(
                        f"tensor {shown(linear.name)}.weight_g_idx of {stored.where} has groups that do not exist;"
                        " download it again"
                    )
                matrix -= zeros[:, groups]
                matrix *= scales[:, groups]
                return matrix
        by_group = matrix.reshape(len(matrix), linear.n_groups, -1)
        by_group -= zeros[:, :, None]
        by_group *= scales[:, :, None]
        return matrix
