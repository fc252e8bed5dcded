"""Scaled float8 weights, dequantized to float32 as they are read.

DeepSeek-V3 and the Qwen FP8 releases store a weight in f8. Each block of 128 x 128 elements has one scale. Blocks
at the edges are partial. The scales are in a companion tensor NAME_scale_inv; the value is f8 * scale. DeepSeek-V4
has `scale` beside `weight`. Other releases have one scale for the tensor or for each row (Mistral's `weight_scale_inv`,
compressed-tensors' `weight_scale`). The arithmetic is llama.cpp's (`dequant_simple` in its conversion/base.py): both
factors in float32, one multiplication.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.quantized.settings import quantization_config
from quantkit.checkpoint.tensor import FLOAT8, NUMPY_DTYPES, TensorInfo
from quantkit.errors import CheckpointError, UnsupportedError

Block = tuple[int, int]
"""Rows and columns that share a scale."""

_DEFAULT_BLOCK: Block = (128, 128)
_SCALE_SUFFIXES = ("_scale_inv", "_scale")
# Scales for activations, which a weight does not need; they are hidden together with the weight's scale.
_ACTIVATION_SUFFIXES = ("input_scale", "activation_scale")
SCALE_DTYPES: dict[str, np.dtype] = {
    **{name: NUMPY_DTYPES[name] for name in ("F32", "BF16", "F16")},
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
# numpy widens the bytes to 8-byte indices: a piece at a time, so that a large tensor does not take 8 times its size.
_PIECE = 1 << 18
_VALUES = {name: np.arange(256, dtype=np.uint8).view(NUMPY_DTYPES[name]).astype(np.float32) for name in FLOAT8}


def pair_scales(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], where: str
) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
    """(the model's tensors with `scale` filled in for f8, the scale tensors, which the model does not see).

    Raises:
        CheckpointError: a scale is missing, or its shape does not fit its weight.
        UnsupportedError: no release uses the dtype of a scale.
    """
    block = block_size(config, where)
    model, scales = dict(tensors), {}
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOAT8:
            continue
        scale = next((scale for scale in _scale_names(name) if scale in tensors), None)
        if scale is None:
            if quantization_config(config):
                raise CheckpointError(
                    f"tensor {shown(name)} of {where} is {tensor.dtype} but its scale {shown(name + '_scale_inv')} is "
                    f"missing; download the checkpoint again"
                )
            continue
        _check_scale(tensor, tensors[scale], block, where)
        model[name] = replace(tensor, scale=scale)
        scales[scale] = model.pop(scale)
        stem = name.removesuffix("weight")
        for suffix in _ACTIVATION_SUFFIXES:
            # "up_proj.weight" has "up_proj.input_scale", fused "gate_up_proj" has "gate_up_proj_activation_scale".
            model.pop(stem + suffix if stem != name else f"{name}_{suffix}", None)
    return model, scales


def _scale_names(name: str) -> tuple[str, ...]:
    """The names that the scale of a tensor may have."""
    names = tuple(name + suffix for suffix in _SCALE_SUFFIXES)
    return (*names, name.removesuffix("weight") + "scale") if name.endswith(".weight") else names


def block_size(config: Mapping[str, Any], where: str) -> Block:
    """The block of config.json's quantization_config.weight_block_size, 128 x 128 without that key."""
    size = quantization_config(config).get("weight_block_size")
    if size is None:
        return _DEFAULT_BLOCK
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
        raise CheckpointError(
            f"config.json of {where} has weight_block_size {shown(str(size))}, which is not two positive integers; "
            f"take the checkpoint's own config.json"
        )
    return size[0], size[1]


def block_of(tensor: TensorInfo, scale: TensorInfo, block: Block) -> Block | None:
    """The rows and columns of `tensor` (last two dimensions) that share a value of `scale`; None if they do not fit.

    The shape of `scale` shows what has one value: the tensor, each matrix of a stack, each row or each block.
    """
    *stack, rows, columns = tensor.shape if len(tensor.shape) > 1 else (1, *(tensor.shape or (1,)))
    shape = scale.shape
    if scale.n_params == 1:
        return max(rows, 1), max(columns, 1)
    if shape == (*stack, -(-rows // block[0]), -(-columns // block[1])):
        return block
    if shape == (*stack, rows, 1) or shape == (*stack, rows):
        return 1, max(columns, 1)
    if stack and (shape == tuple(stack) or shape == (*stack, 1, 1)):
        return max(rows, 1), max(columns, 1)
    return None


def _check_scale(tensor: TensorInfo, scale: TensorInfo, block: Block, where: str) -> None:
    if scale.dtype not in SCALE_DTYPES:
        raise UnsupportedError(
            f"scale {shown(scale.name)} of {where} is stored as {scale.dtype}, not {', '.join(SCALE_DTYPES)}; "
            f"take the checkpoint in bf16"
        )
    if block_of(tensor, scale, block) is None:
        raise CheckpointError(
            f"scale {shown(scale.name)} of {where} has shape {list(scale.shape)}, which does not fit tensor "
            f"{shown(tensor.name)} {list(tensor.shape)} in blocks of {block[0]} x {block[1]}; download it again"
        )


def to_float32(raw: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[np.float32]:
    """The values of f8 bytes, any shape, as float32 (exact); `dtype` is "F8_E4M3" or "F8_E5M2"."""
    values = np.empty(raw.shape, np.float32)
    flat_raw, flat_values = raw.reshape(-1), values.reshape(-1)
    for start in range(0, flat_raw.size, _PIECE):
        piece = slice(start, start + _PIECE)
        np.take(_VALUES[dtype], flat_raw[piece], out=flat_values[piece], mode="clip")
    return values


def apply_scales(
    values: npt.NDArray[np.float32], scales: npt.NDArray[np.float32], first_row: int, rows: int, block: Block
) -> None:
    """Multiply rows of a scaled tensor by their scales, in place.

    `values` (n, columns) are rows first_row.. of a stack of matrices of `rows` rows each; `scales` (m, column blocks)
    are the whole stack's. A single scale serves everything. The scale of row r, column c of matrix k is

        scales[k * ceil(rows / block[0]) + r // block[0], c // block[1]]
    """
    if scales.size == 1:
        values *= scales.reshape(())
        return
    if values.size == 0:
        return
    number = np.arange(first_row, first_row + values.shape[0])
    scale_row = number // rows * -(-rows // block[0]) + number % rows // block[0]
    starts = np.flatnonzero(np.diff(scale_row, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], values.shape[0]], strict=True):
        values[start:stop] *= np.repeat(scales[scale_row[start]], block[1])[: values.shape[1]]
