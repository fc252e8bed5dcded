"""The linears of compressed-tensors folders with integer weights (pack-quantized)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.checkpoint.dequantize import unpack_stream
from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.tensor import TensorInfo
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.forward.weights import Array
from quantkit.packed.scheme import FLOATS, PackedLinear, Scheme, StoredTensors


@dataclass
class IntegerScheme(Scheme):
    """Integers of `bits` bits, stored plus 2^(bits - 1); `group` inputs share a scale and, unless symmetric, a zero."""

    bits: int
    group: int
    symmetric: bool
    method: str = "compressed-tensors"
    parts: tuple[str, ...] = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")

    def linears(self, tensors: Mapping[str, TensorInfo], folder: Path) -> list[PackedLinear]:
        linears = []
        for tensor in tensors.values():
            if not tensor.name.endswith(".weight_packed"):
                continue
            name = tensor.name.removesuffix(".weight_packed")
            scale, zero = tensors.get(f"{name}.weight_scale"), tensors.get(f"{name}.weight_zero_point")
            if scale is None or len(scale.shape) != 2 or scale.dtype not in FLOATS or len(tensor.shape) != 2:
                raise CheckpointError(f"linear {shown(name)} of {folder} has no weight_scale; download it again")
            n_out, groups = scale.shape
            n_in = groups * self.group if self.group != -1 else tensor.shape[1] * 32 // self.bits
            packed = (n_out, -(-n_in * self.bits // 32))
            zeros = None if self.symmetric else (-(-n_out * self.bits // 32), groups)
            stated = None if zero is None else zero.shape
            if (tensor.dtype, tensor.shape, stated) != ("I32", packed, zeros):
                raise CheckpointError(
                    f"linear {shown(name)} of {folder} has weight_packed {list(tensor.shape)}, weight_scale"
                    f" {list(scale.shape)} and weight_zero_point {None if stated is None else list(stated)}, which do"
                    f" not match {self.bits} bits and group size {self.group}; download it again"
                )
            linears.append(PackedLinear(name, n_out, n_in, groups))
        if not linears:
            raise CheckpointError(
                f"config.json of {folder} states quantization but no packed weights exist; download it again"
            )
        return linears

    def dequantized(self, stored: StoredTensors, linear: PackedLinear, start: int, stop: int) -> Array:
        words = stored.stored_rows(f"{linear.name}.weight_packed", start, stop)
        scales = stored.stored_rows(f"{linear.name}.weight_scale", start, stop).astype(np.float32)
        if not np.isfinite(scales).all():
            raise CheckpointError(
                f"tensor {shown(linear.name)}.weight_scale of {stored.folder} contains NaN or infinity"
            )
        matrix = unpack_stream(words, self.bits, linear.n_in).astype(np.float32)
        zeros = np.full((stop - start, linear.n_groups), 1 << (self.bits - 1), np.float32)
        if not self.symmetric:
            columns = stored.stored(f"{linear.name}.weight_zero_point").T
            zeros = unpack_stream(columns, self.bits, linear.n_out)[:, start:stop].T.astype(np.float32)
        by_group = matrix.reshape(len(matrix), linear.n_groups, -1)
        by_group -= zeros[:, :, None]
        by_group *= scales[:, :, None]
        return matrix


def read_compressed(quantization: Mapping[str, Any], where: str) -> IntegerScheme | None:
    """The scheme of a compressed-tensors folder of integers; None for another method or layout.

    Raises UnsupportedError for several groups of linears, or a grid that cannot be read.
    """
    if quantization.get("quant_method") != "compressed-tensors" or quantization.get("format") != "pack-quantized":
        return None
    groups = quantization.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        raise UnsupportedError(f"{where} has several schemes of quantization; only folders of one scheme can be read")
    weights = next(iter(groups.values())).get("weights") or {}
    bits, size, strategy = weights.get("num_bits"), weights.get("group_size"), weights.get("strategy")
    group = -1 if strategy == "channel" else size
    if (
        not (type(bits) is int and 2 <= bits <= 8 and type(group) is int and (group > 0 or group == -1))
        or weights.get("type", "int") != "int"
        or weights.get("actorder") in ("group", "dynamic", True)
    ):
        raise UnsupportedError(
            f"{where} has weights of {shown(str(bits))} bits, strategy {shown(str(strategy))} and group size"
            f" {shown(str(size))}; only integers of 2 to 8 bits by channel or group can be read"
        )
    return IntegerScheme(bits, group, weights.get("symmetric", True) is True)
