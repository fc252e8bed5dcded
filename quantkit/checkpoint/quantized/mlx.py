"""The linears of MLX folders, as mlx-lm writes and reads them: integers in 32-bit words along the inputs.

Sources: mlx-lm's `load_model` and `quantize_model`, MLX's `quantize`. mlx-lm quantizes the modules that have `scales`.
The settings of a module under its own name differ from those of all. The experts of a layer are one stack, a tensor
of three dimensions; here each expert has the name that a checkpoint gives it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.dequantize import float4_values, power_scales, unpack_stream
from quantkit.checkpoint.float8 import to_float32
from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.quantized.scheme import (
    FLOATS,
    Array,
    MixedScheme,
    PackedLinear,
    Scheme,
    StoredTensors,
    require_finite,
)
from quantkit.checkpoint.tensor import TensorInfo
from quantkit.errors import CheckpointError, UnsupportedError

_BITS = (2, 3, 4, 5, 6, 8)
_GROUPS = (16, 32, 64, 128)
_WORD = 32
_SETTINGS = ("bits", "group_size", "mode")
# mlx-lm's `sanitize` functions stack experts under these names
_STACK = re.compile(r"(.*\.)(?:switch_mlp|experts)\.((?:gate|up|down)_proj)")
_NUMBERED = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


@dataclass
class MlxScheme(Scheme):
    """w = q * scale + bias."""

    bits: int
    group: int
    method: str = "mlx"
    parts: tuple[str, ...] = ("weight", "scales", "biases")
    layout: str | None = "affine"

    def linears(self, tensors: Mapping[str, TensorInfo], where: str) -> list[PackedLinear]:
        linears: list[PackedLinear] = []
        for tensor in tensors.values():
            if tensor.dtype != "U32" or not tensor.name.endswith(".weight"):
                continue
            name = tensor.name.removesuffix(".weight")
            scales, biases = (tensors.get(f"{name}.{part}") for part in ("scales", "biases"))
            if scales is None or biases is None or scales.dtype not in FLOATS:
                raise CheckpointError(f"linear {shown(name)} of {where} has no scales and biases; download it again")
            n_in = tensor.row_length * _WORD // self.bits
            expected = (*tensor.shape[:-1], n_in // self.group)
            if scales.shape != expected or biases.shape != expected:
                raise CheckpointError(
                    f"linear {shown(name)} of {where} has weight {list(tensor.shape)} and scales {list(scales.shape)},"
                    f" which do not match {self.bits} bits and group size {self.group}; download it again"
                )
            linears += _matrices(tensor, n_in, expected[-1], where)
        return linears

    def dequantized(self, stored: StoredTensors, linear: PackedLinear, start: int, stop: int) -> Array:
        words = _rows(stored, linear, "weight", start, stop)
        scales, biases = (_rows(stored, linear, part, start, stop).astype(np.float32) for part in ("scales", "biases"))
        require_finite(scales, f"{linear.name}.scales", stored.where)
        require_finite(biases, f"{linear.name}.biases", stored.where)
        matrix = unpack_stream(words, self.bits, linear.n_in).astype(np.float32)
        by_group = matrix.reshape(len(matrix), linear.n_groups, -1)
        by_group *= scales[:, :, None]
        by_group += biases[:, :, None]
        return matrix


@dataclass
class MlxFloat4Scheme(Scheme):
    """w = float4 * scale: MLX's modes mxfp4 (groups of 32, powers of two) and nvfp4 (groups of 16, 8-bit floats)."""

    group: int
    layout: str | None
    bits: int = 4
    method: str = "mlx"
    parts: tuple[str, ...] = ("weight", "scales")

    def linears(self, tensors: Mapping[str, TensorInfo], where: str) -> list[PackedLinear]:
        linears: list[PackedLinear] = []
        for tensor in tensors.values():
            if tensor.dtype != "U32" or not tensor.name.endswith(".weight"):
                continue
            name = tensor.name.removesuffix(".weight")
            scales = tensors.get(f"{name}.scales")
            if scales is None or scales.dtype != "U8":
                raise CheckpointError(f"linear {shown(name)} of {where} has no scales; download it again")
            n_in = tensor.row_length * 8
            if scales.shape != (*tensor.shape[:-1], n_in // self.group):
                raise CheckpointError(
                    f"linear {shown(name)} of {where} has weight {list(tensor.shape)} and scales {list(scales.shape)},"
                    f" which do not match group size {self.group}; download it again"
                )
            linears += _matrices(tensor, n_in, scales.row_length, where)
        return linears

    def dequantized(self, stored: StoredTensors, linear: PackedLinear, start: int, stop: int) -> Array:
        words = np.ascontiguousarray(_rows(stored, linear, "weight", start, stop))
        matrix = float4_values(words.view(np.uint8))
        raw = _rows(stored, linear, "scales", start, stop)
        factors = power_scales(raw) if self.layout == "mxfp4" else to_float32(raw, "F8_E4M3")
        require_finite(factors, f"{linear.name}.scales", stored.where)
        by_group = matrix.reshape(len(matrix), linear.n_groups, -1)
        by_group *= factors[:, :, None]
        return matrix


def _matrices(tensor: TensorInfo, n_in: int, n_groups: int, where: str) -> Iterator[PackedLinear]:
    """The linear of a packed tensor (n_out, words); of a stack (experts, n_out, words), the linear of each expert."""
    name = tensor.name.removesuffix(".weight")
    if len(tensor.shape) == 2:
        yield PackedLinear(name, tensor.shape[0], n_in, n_groups)
        return
    stack = _STACK.fullmatch(name) if len(tensor.shape) == 3 else None
    if stack is None:
        raise UnsupportedError(
            f"{shown(name)} of {where} has the shape {list(tensor.shape)}, which only stacks of experts have; take the"
            " original 16-bit checkpoint"
        )
    at, role = stack[1], stack[2]
    if at.endswith("block_sparse_moe."):
        role = _NUMBERED[role]
    for index in range(tensor.shape[0]):
        yield PackedLinear(f"{at}experts.{index}.{role}", tensor.shape[1], n_in, n_groups, name, index)


def _rows(stored: StoredTensors, linear: PackedLinear, part: str, start: int, stop: int) -> NDArray[Any]:
    """Rows start..stop of a linear in one of its tensors."""
    first = linear.index * linear.n_out
    return stored.stored_rows(f"{linear.stored}.{part}", first + start, first + stop)


def read_mlx(quantization: Mapping[str, Any], where: str) -> Scheme | None:
    """The scheme of an MLX folder; None for another method. Raises UnsupportedError for a mode or width not read."""
    if not is_mlx(quantization):
        return None
    default = _scheme(quantization, where)
    settings_by_name = {name: value for name, value in quantization.items() if name not in _SETTINGS}
    if not settings_by_name:
        return default
    schemes: dict[str, Scheme | None] = {}
    for name, settings in settings_by_name.items():
        if isinstance(settings, Mapping):
            schemes[name] = _scheme({**quantization, **settings}, where)
        elif settings is False:
            schemes[name] = None
        elif settings is not True:
            raise UnsupportedError(
                f"{where} is an MLX folder with the setting {shown(name)}, which quantkit does not know; take the"
                " original 16-bit checkpoint"
            )
    return MixedScheme(default, lambda name: schemes.get(name, default))


def _scheme(settings: Mapping[str, Any], where: str) -> Scheme:
    bits, group, mode = (settings.get(key) for key in _SETTINGS)
    if mode in ("mxfp4", "nvfp4") and (bits, group) == (4, 32 if mode == "mxfp4" else 16):
        return MlxFloat4Scheme(int(str(group)), mode)
    if mode not in (None, "affine") or bits not in _BITS or group not in _GROUPS:
        raise UnsupportedError(
            f"{where} is an MLX folder with {shown(str(bits))} bits, group size {shown(str(group))}, mode"
            f" {shown(str(mode))}; only affine, mxfp4 and nvfp4 can be read, take the original 16-bit checkpoint"
        )
    return MlxScheme(int(bits), int(group))


def is_mlx(quantization: Mapping[str, Any]) -> bool:
    """Whether the settings are mlx-lm's, which name no method. AutoGPTQ's name none either, but have more keys."""
    stated = {"bits", "group_size"} <= quantization.keys() and "desc_act" not in quantization
    return stated and not quantization.keys() & {"quant_method", "method", "sym", "zero_point", "q_group_size"}
