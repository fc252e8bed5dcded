"""compressed-tensors folders of 4-bit floats: weights only (NVFP4A16, MXFP4A16), and activations too (W4A4).

Source: compressed-tensors' `NVFP4PackedCompressor` and `MXFP4PackedCompressor`, presets NVFP4A16, MXFP4A16 and NVFP4.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from quantkit.checkpoint.dequantize import float4_values, power_scales
from quantkit.packed.activations import INPUT_SCALE
from quantkit.packed.compressed_config import compressed_config
from quantkit.packed.formats import DirectFormat, FolderRequest, Names, Packed, PointsFormat, Stored
from quantkit.quant.factor import Factor
from quantkit.quant.float4 import global_scale, mxfp4_scales, nvfp4_scales, pack_float4
from quantkit.quant.grid import Array, Grid
from quantkit.quant.points import feed_back_onto, nvfp4_points

_E4M3 = "torch.float8_e4m3fn"
NVFP4_LAYOUT, MXFP4_LAYOUT = "nvfp4-pack-quantized", "mxfp4-pack-quantized"


class _Float4(DirectFormat):
    bits, group_sizes = 4, ()
    layout: str
    strategy: str
    scale_dtype: str

    def grid(self, bits: int, group: int | None, *, symmetric: bool) -> Grid:
        return Grid(4, self.group or 16, symmetric=True)

    def why_not(self, grid: Grid, n_in: int, n_out: int, *, last: bool = True) -> str | None:
        return f"its {n_in} inputs are not a multiple of {grid.group}" if n_in % grid.group else None

    def stored(self, request: FolderRequest, n_in: int, n_out: int) -> Stored:
        groups = (n_out, n_in // request.grid.group)
        return {"weight_packed": ("U8", (n_out, n_in // 2)), "weight_scale": (self.scale_dtype, groups)}

    def config(self, request: FolderRequest, names: Names) -> dict[str, Any]:
        weights = {"num_bits": 4, "type": "float", "strategy": self.strategy, "group_size": request.grid.group}
        return compressed_config(self.layout, names, {**weights, "symmetric": True, "dynamic": False})


class Nvfp4(_Float4):
    """Groups of 16 with e4m3 scales, and a float32 scale of the matrices that share an input."""

    name, label, summary = "nvfp4a16", "NVFP4A16", "NVFP4 weights, activations in 16 bits (compressed-tensors)"
    group, layout, strategy, scale_dtype, error_bound = 16, NVFP4_LAYOUT, "tensor_group", "F8_E4M3", 0.2
    shares_survey = True

    def stored(self, request: FolderRequest, n_in: int, n_out: int) -> Stored:
        return {**super().stored(request, n_in, n_out), "weight_global_scale": ("F32", (1,))}

    def survey(self, pieces: Iterable[Array]) -> np.float32:
        return global_scale(max(float(np.abs(piece).max(initial=0)) for piece in pieces))

    def encode(self, rows: Array, request: FolderRequest, surveyed: Any) -> Packed:
        scales = nvfp4_scales(rows, surveyed)
        values = scales.view(ml_dtypes.float8_e4m3fn).astype(np.float32) / surveyed
        return {"weight_packed": pack_float4(rows, values), "weight_scale": scales}

    def once(self, request: FolderRequest, surveyed: Any) -> Packed:
        return {"weight_global_scale": np.array([surveyed], np.float32)}


class Nvfp4Activations(PointsFormat):
    """NVFP4 weights and activations. A runtime scales groups of 16 inputs; the scale of all is from the calibration.

    The weights are rounded with error feedback, or to nearest.
    """

    name, label, summary = "w4a4", "W4A4", "NVFP4 weights and activations (compressed-tensors)"
    bits, group, group_sizes = 4, 16, ()
    weights = Nvfp4()

    def grid(self, bits: int, group: int | None, *, symmetric: bool) -> Grid:
        return self.weights.grid(bits, group, symmetric=True)

    def why_not(self, grid: Grid, n_in: int, n_out: int, *, last: bool = True) -> str | None:
        return self.weights.why_not(grid, n_in, n_out)

    def stored(self, request: FolderRequest, n_in: int, n_out: int) -> Stored:
        return {**self.weights.stored(request, n_in, n_out), INPUT_SCALE: ("F32", (1,))}

    def config(self, request: FolderRequest, names: Names) -> dict[str, Any]:
        shared = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
        weights, activations = {**shared, "dynamic": False}, {**shared, "dynamic": "local", "scale_dtype": _E4M3}
        return compressed_config(NVFP4_LAYOUT, names, weights, activations)

    def shared(self, weights: Sequence[Array], largest: float) -> Packed:
        overall = self.weights.survey(weights)
        return {
            "weight_global_scale": np.array([overall], np.float32),
            INPUT_SCALE: np.array([global_scale(largest)], np.float32),
        }

    def round(self, rows: Array, shared: Packed, request: FolderRequest, factored: Factor | None) -> Packed:
        overall = shared["weight_global_scale"][0]
        if factored is None:
            return self.weights.encode(rows, request, overall)
        points = nvfp4_points(rows, overall, factored.pivots**2)
        rounded = feed_back_onto(rows, points, factored)
        scales = (points.scales * overall).astype(ml_dtypes.float8_e4m3fn)
        return {"weight_packed": pack_float4(rounded, points.scales), "weight_scale": scales.view(np.uint8)}

    def unpacked(self, packed: Packed, request: FolderRequest) -> Array:
        scales = packed["weight_scale"].view(ml_dtypes.float8_e4m3fn).astype(np.float32) / packed["weight_global_scale"]
        values = float4_values(packed["weight_packed"])
        matrix: Array = (values.reshape(*scales.shape, -1) * scales[:, :, None]).reshape(values.shape)
        return matrix


class Mxfp4(_Float4):
    """Groups of 32 with scales that are powers of two."""

    name, label, summary = "mxfp4a16", "MXFP4A16", "MXFP4 weights, activations in 16 bits (compressed-tensors)"
    group, layout, strategy, scale_dtype, error_bound = 32, MXFP4_LAYOUT, "group", "U8", 0.35

    def encode(self, rows: Array, request: FolderRequest, surveyed: Any) -> Packed:
        scales = mxfp4_scales(rows)
        return {"weight_packed": pack_float4(rows, power_scales(scales)), "weight_scale": scales}
