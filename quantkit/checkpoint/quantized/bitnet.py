"""The linears of BitNet checkpoints of transformers: the values -1, 0 and 1, four in a byte, with one scale.

Sources: transformers' `unpack_weights`, `BitLinear` and `AutoBitLinear`; llama.cpp's `dequant_bitnet`. The runtime also
rounds the activations to 8 bits, which a file of weights does not state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.quantized.scheme import FLOATS, Array, PackedLinear, Scheme, StoredTensors, require_finite
from quantkit.checkpoint.tensor import TensorInfo
from quantkit.errors import CheckpointError, UnsupportedError


@dataclass
class BitNetScheme(Scheme):
    """w = (q - 1) / scale, or times the scale if `multiplies`. Row r is in bits 2 * (r // (n_out / 4)) of the bytes."""

    multiplies: bool = False
    method: str = "bitnet"
    bits: int = 2
    group: int = -1
    parts: tuple[str, ...] = ("weight", "weight_scale")
    layout: str | None = "ternary"

    def linears(self, tensors: Mapping[str, TensorInfo], where: str) -> list[PackedLinear]:
        linears = []
        for tensor in tensors.values():
            if tensor.dtype != "U8" or not tensor.name.endswith(".weight") or len(tensor.shape) != 2:
                continue
            name = tensor.name.removesuffix(".weight")
            scale = tensors.get(f"{name}.weight_scale")
            if scale is None or scale.dtype not in FLOATS or scale.n_params != 1:
                raise CheckpointError(f"linear {shown(name)} of {where} has no weight_scale; download it again")
            linears.append(PackedLinear(name, tensor.shape[0] * 4, tensor.shape[1], 1))
        return linears

    def dequantized(self, stored: StoredTensors, linear: PackedLinear, start: int, stop: int) -> Array:
        scale = stored.stored(f"{linear.name}.weight_scale").astype(np.float32).reshape(())
        with np.errstate(divide="ignore"):
            factor = scale if self.multiplies else np.float32(1) / scale
        require_finite(factor, f"{linear.name}.weight_scale", stored.where)
        quarter = linear.n_out // 4
        matrix = np.empty((stop - start, linear.n_in), np.float32)
        for index in range(4):
            first, last = max(start, index * quarter), min(stop, (index + 1) * quarter)
            if first < last:
                packed = stored.stored_rows(f"{linear.name}.weight", first - index * quarter, last - index * quarter)
                matrix[first - start : last - start] = (packed >> np.uint8(2 * index)) & np.uint8(3)
        matrix -= 1
        matrix *= factor
        return matrix


def read_bitnet(quantization: Mapping[str, Any], where: str) -> BitNetScheme:
    """The scheme of a BitNet checkpoint. Raises UnsupportedError for norms inside linears, and weights not packed."""
    if quantization.get("use_rms_norm"):
        raise UnsupportedError(f"{where} has a norm inside each BitNet linear (use_rms_norm), which no GGUF has")
    automatic = quantization.get("linear_class") == "autobitlinear"
    if automatic and quantization.get("quantization_mode", "offline") == "online":
        raise UnsupportedError(
            f"{where} has BitNet weights that the runtime rounds as it loads them (quantization_mode online); take the"
            " checkpoint with packed weights"
        )
    return BitNetScheme(multiplies=automatic)
