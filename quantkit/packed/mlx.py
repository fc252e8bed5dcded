"""MLX folders, as mlx-lm writes and reads them: integers in 32-bit words along the inputs, with scales and biases.

Sources: mlx-lm's `quantize_model` and `load_model`, MLX's `quantize`. mlx-lm quantizes the linears that have `scales`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.checkpoint.dequantize import unpack_stream
from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.tensor import NUMPY_DTYPES, TensorInfo
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.forward.weights import Array
from quantkit.packed.formats import DirectFormat, FolderRequest, Names, Packed, Stored
from quantkit.packed.packing import WORD, pack_stream
from quantkit.packed.scheme import FLOATS, PackedLinear, Scheme, StoredTensors
from quantkit.quant.affine import round_affine
from quantkit.quant.grid import Grid

BITS = (3, 4, 5, 6, 8)
_GROUPS = (32, 64, 128)
# about twice the RMS error on Gaussian weights in groups of 64
_ERROR_BOUND = {3: 0.4, 4: 0.2, 5: 0.1, 6: 0.05, 8: 0.02}


class Mlx(DirectFormat):
    """Integers of `bits` bits; a scale and a bias for each group."""

    group, group_sizes, stacks_experts = 64, _GROUPS, True

    def __init__(self, bits: int) -> None:
        self.name, self.label, self.bits = f"mlx-{bits}bit", f"MLX-{bits}bit", bits
        self.summary = f"{bits}-bit integers for MLX (mlx-lm)"
        self.error_bound = _ERROR_BOUND[bits]

    def grid(self, bits: int, group: int | None, *, symmetric: bool) -> Grid:
        return Grid(self.bits or bits, self.group if group is None else group)

    def why_not(self, grid: Grid, n_in: int, n_out: int, *, last: bool = True) -> str | None:
        if grid.group not in _GROUPS:
            return f"MLX has groups of {', '.join(map(str, _GROUPS))}, not {grid.group}; choose one by --group-size"
        if n_in % grid.group:
            return f"its {n_in} inputs are not a multiple of the group size {grid.group}"
        return None

    def stored(self, request: FolderRequest, n_in: int, n_out: int) -> Stored:
        groups = (n_out, n_in // request.grid.group)
        return {
            "weight": ("U32", (n_out, n_in * request.grid.bits // WORD)),
            "scales": (request.stored_dtype, groups),
            "biases": (request.stored_dtype, groups),
        }

    def config(self, request: FolderRequest, names: Names) -> dict[str, Any]:
        return {"group_size": request.grid.group, "bits": request.grid.bits, "mode": "affine"}

    def config_keys(self, request: FolderRequest, names: Names) -> dict[str, Any]:
        """mlx-lm reads `quantization`; the hub shows `quantization_config`."""
        config = self.config(request, names)
        return {"quantization": config, "quantization_config": config}

    def encode(self, rows: Array, request: FolderRequest, surveyed: Any) -> Packed:
        # mlx-lm rounds the weights to the type of the model first
        rounded = rows.astype(NUMPY_DTYPES[request.stored_dtype]).astype(np.float32)
        affine = round_affine(rounded, request.grid.bits, request.grid.group)
        words = pack_stream(affine.q, request.grid.bits).view("<u4")
        return {"weight": words, "scales": affine.scales, "biases": affine.biases}


@dataclass
class MlxScheme(Scheme):
    """w = q * scale + bias."""

    bits: int
    group: int
    method: str = "mlx"
    parts: tuple[str, ...] = ("weight", "scales", "biases")

    def linears(self, tensors: Mapping[str, TensorInfo], folder: Path) -> list[PackedLinear]:
        linears = []
        for tensor in tensors.values():
            if tensor.dtype != "U32" or not tensor.name.endswith(".weight"):
                continue
            name = tensor.name.removesuffix(".weight")
            scales, biases = (tensors.get(f"{name}.{part}") for part in ("scales", "biases"))
            if scales is None or biases is None or scales.dtype not in FLOATS or len(tensor.shape) != 2:
                raise CheckpointError(f"linear {shown(name)} of {folder} has no scales and biases; download it again")
            n_in = tensor.shape[1] * WORD // self.bits
            expected = (tensor.shape[0], n_in // self.group)
            if scales.shape != expected or biases.shape != expected:
                raise CheckpointError(
                    f"linear {shown(name)} of {folder} has weight {list(tensor.shape)} and scales {list(scales.shape)},"
                    f" which do not match {self.bits} bits and group size {self.group}; download it again"
                )
            linears.append(PackedLinear(name, tensor.shape[0], n_in, expected[1]))
        if not linears:
            raise CheckpointError(
                f"config.json of {folder} states quantization but no packed weights exist; download it again"
            )
        return linears

    def dequantized(self, stored: StoredTensors, linear: PackedLinear, start: int, stop: int) -> Array:
        words = stored.stored_rows(f"{linear.name}.weight", start, stop)
        scales, biases = (
            stored.stored_rows(f"{linear.name}.{part}", start, stop).astype(np.float32) for part in ("scales", "biases")
        )
        if not (np.isfinite(scales).all() and np.isfinite(biases).all()):
            raise CheckpointError(f"tensor {shown(linear.name)}.scales of {stored.folder} contains NaN or infinity")
        matrix = unpack_stream(words, self.bits, linear.n_in).astype(np.float32)
        by_group = matrix.reshape(len(matrix), linear.n_groups, -1)
        by_group *= scales[:, :, None]
        by_group += biases[:, :, None]
        return matrix


def read_mlx(quantization: Mapping[str, Any], where: str) -> MlxScheme | None:
    """The scheme of an MLX folder; None for another method. Raises UnsupportedError for a mode or mix not read."""
    if not is_mlx(quantization):
        return None
    bits, group, mode = (quantization.get(key) for key in ("bits", "group_size", "mode"))
    own = [name for name in quantization if name not in ("bits", "group_size", "mode")]
    if mode not in (None, "affine") or own or bits not in BITS or group not in _GROUPS:
        what = f"own settings of {shown(own[0])}" if own else f"{bits} bits, group size {group}, mode {mode}"
        raise UnsupportedError(f"{where} is an MLX folder with {what}; only one affine scheme for all can be read")
    return MlxScheme(int(bits), int(group))


def is_mlx(quantization: Mapping[str, Any]) -> bool:
    """Whether the settings are mlx-lm's, which name no method. AutoGPTQ's name none either, but have more keys."""
    stated = {"bits", "group_size"} <= quantization.keys() and "desc_act" not in quantization
    return stated and not quantization.keys() & {"quant_method", "method", "sym", "zero_point", "q_group_size"}
