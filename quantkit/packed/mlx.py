"""MLX folders, as mlx-lm writes them: integers in 32-bit words along the inputs, with scales and biases.

Sources: mlx-lm's `quantize_model` and `load_model`, MLX's `quantize`. mlx-lm quantizes the linears that have `scales`.
"""

from typing import Any

import numpy as np

from quantkit.checkpoint.dequantize import power_scales, unpack_stream
from quantkit.checkpoint.tensor import NUMPY_DTYPES
from quantkit.errors import UsageError
from quantkit.packed.formats import DirectFormat, FolderRequest, Format, Names, Packed, PointsFormat, Stored
from quantkit.packed.packing import WORD, pack_stream
from quantkit.quant.affine import round_affine
from quantkit.quant.factor import Factor
from quantkit.quant.float4 import mlx_mxfp4_scales, pack_float4
from quantkit.quant.grid import Array, Grid
from quantkit.quant.points import AffinePoints, affine_points, feed_back_onto

BITS = (3, 4, 5, 6, 8)
_GROUPS = (32, 64, 128)
# about twice the RMS error on Gaussian weights in groups of 64
_ERROR_BOUND = {3: 0.4, 4: 0.2, 5: 0.1, 6: 0.05, 8: 0.02}


class _MlxFolder(Format):
    """What every folder of mlx-lm has: groups of `group_sizes` inputs, and the settings under two keys."""

    group_sizes: tuple[int, ...]
    for_mlx = True

    def check(self, request: FolderRequest) -> None:
        """Raises UsageError for a group size that MLX does not have."""
        if request.grid.group not in self.group_sizes:
            sizes = ", ".join(map(str, self.group_sizes))
            raise UsageError(
                f"{self.label} has groups of {sizes}, not {request.grid.group}; choose one by --group-size"
            )

    def why_not(self, grid: Grid, n_in: int, n_out: int, *, last: bool = True) -> str | None:
        if n_in % grid.group:
            return f"its {n_in} inputs are not a multiple of the group size {grid.group}"
        return None

    def config_keys(self, request: FolderRequest, names: Names) -> dict[str, Any]:
        """mlx-lm reads `quantization`; the hub shows `quantization_config`."""
        config = self.config(request, names)
        return {"quantization": config, "quantization_config": config}


class _Mlx(_MlxFolder):
    """Integers of `bits` bits; a scale and a bias for each group."""

    group, group_sizes = 64, _GROUPS

    def grid(self, bits: int, group: int | None, *, symmetric: bool) -> Grid:
        return Grid(self.bits or bits, self.group if group is None else group)

    def stored(self, request: FolderRequest, n_in: int, n_out: int) -> Stored:
        groups = (n_out, n_in // request.grid.group)
        return {
            "weight": ("U32", (n_out, n_in * request.grid.bits // WORD)),
            "scales": (request.stored_dtype, groups),
            "biases": (request.stored_dtype, groups),
        }

    def config(self, request: FolderRequest, names: Names) -> dict[str, Any]:
        return {"group_size": request.grid.group, "bits": request.grid.bits, "mode": "affine"}


class Mlx(_Mlx, DirectFormat):
    """The bytes of `mx.quantize`."""

    def __init__(self, bits: int) -> None:
        self.name, self.label, self.bits = f"mlx-{bits}bit", f"MLX-{bits}bit", bits
        self.summary = f"{bits}-bit integers for MLX (mlx-lm)"
        self.error_bound = _ERROR_BOUND[bits]

    def encode(self, rows: Array, request: FolderRequest, surveyed: Any) -> Packed:
        # mlx-lm rounds the weights to the type of the model first
        rounded = rows.astype(NUMPY_DTYPES[request.stored_dtype]).astype(np.float32)
        affine = round_affine(rounded, request.grid.bits, request.grid.group)
        words = pack_stream(affine.q, request.grid.bits).view("<u4")
        return {"weight": words, "scales": affine.scales, "biases": affine.biases}


class MlxMxfp4(_MlxFolder, DirectFormat):
    """4-bit floats with a power of two for each group of 32: the bytes of `mx.quantize` with mode "mxfp4"."""

    name, label, summary = "mlx-mxfp4", "MLX-MXFP4", "MXFP4 weights for MLX (mlx-lm)"
    bits, group, group_sizes, error_bound = 4, 32, (32,), 0.35

    def grid(self, bits: int, group: int | None, *, symmetric: bool) -> Grid:
        return Grid(4, self.group if group is None else group)

    def stored(self, request: FolderRequest, n_in: int, n_out: int) -> Stored:
        return {"weight": ("U32", (n_out, n_in * 4 // WORD)), "scales": ("U8", (n_out, n_in // 32))}

    def config(self, request: FolderRequest, names: Names) -> dict[str, Any]:
        return {"group_size": 32, "bits": 4, "mode": "mxfp4"}

    def encode(self, rows: Array, request: FolderRequest, surveyed: Any) -> Packed:
        # mlx-lm rounds the weights to the type of the model first
        rounded = rows.astype(NUMPY_DTYPES[request.stored_dtype]).astype(np.float32)
        scales = mlx_mxfp4_scales(rounded)
        return {"weight": pack_float4(rounded, power_scales(scales), as_mlx=True).view("<u4"), "scales": scales}


class MlxFeedback(_Mlx, PointsFormat):
    """Error feedback onto MLX's integers, which mlx-lm does not have on a CPU."""

    def __init__(self, name: str) -> None:
        self.bits = int(name[4])
        self.name, self.label = name, f"MLX-{self.bits}bit-GPTQ"
        self.summary = f"{self.bits}-bit integers for MLX (mlx-lm), by GPTQ"

    def round(self, rows: Array, shared: Packed, request: FolderRequest, factored: Factor | None) -> Packed:
        assert factored is not None  # --rounding nearest is AWQ's and w4a4's
        grid, stored = request.grid, NUMPY_DTYPES[request.stored_dtype]
        points = affine_points(rows, grid.bits, factored.pivots**2, grid.group, stored)
        q = points.integers(feed_back_onto(rows, points, factored))
        return {"weight": pack_stream(q, grid.bits).view("<u4"), "scales": points.scales, "biases": points.biases}

    def unpacked(self, packed: Packed, request: FolderRequest) -> Array:
        bits, group = request.grid.bits, request.grid.group
        q = unpack_stream(packed["weight"], bits, packed["weight"].shape[1] * WORD // bits)
        points = AffinePoints(packed["scales"], packed["biases"], group, (1 << bits) - 1)
        return points.values(q)
