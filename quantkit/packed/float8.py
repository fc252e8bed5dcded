"""FP8 folders: one scale a row in compressed-tensors' format, or one a block in DeepSeek's and Qwen's format.

Runtimes round the activations to FP8 as well, with a scale for each token that they compute. Sources:
compressed-tensors' `FP8_DYNAMIC` scheme and dense compressor, transformers' `FineGrainedFP8Config`, vLLM's `Fp8Config`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.tensor import NUMPY_DTYPES
from quantkit.packed.compressed_config import compressed_config
from quantkit.packed.formats import DirectFormat, FolderRequest, Names, Packed, Stored
from quantkit.quant.float8 import BLOCK, bfloat16_to_float8, block_maxima, row_maxima, scales_of, to_float8
from quantkit.quant.grid import Array, Grid


class _Float8(DirectFormat):
    # 4 significant bits: weights err by 2.6%, where 6-bit integers err by 2%, and activations err as much
    bits, like_bits, group, group_sizes, error_bound = 8, 5, -1, (), 0.05

    def grid(self, bits: int, group: int | None, *, symmetric: bool) -> Grid:
        return Grid(8, self.group, symmetric=True)

    def why_not(self, grid: Grid, n_in: int, n_out: int, *, last: bool = True) -> str | None:
        return None


class Float8(_Float8):
    """A scale for each row, of the type of the unquantized tensors."""

    name, label = "fp8", "FP8"
    summary = "FP8, a scale for each row (compressed-tensors)"

    def stored(self, request: FolderRequest, n_in: int, n_out: int) -> Stored:
        return {"weight": ("F8_E4M3", (n_out, n_in)), "weight_scale": (request.stored_dtype, (n_out, 1))}

    def config(self, request: FolderRequest, names: Names) -> dict[str, Any]:
        weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
        activations = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}
        return compressed_config("float-quantized", names, weights, activations)

    def encode(self, rows: Array, request: FolderRequest, surveyed: Any) -> Packed:
        scales = stored_scales(scales_of(row_maxima(rows)), request.stored_dtype)
        return {"weight": to_float8(rows, scales), "weight_scale": scales}

    def encode_bfloat16(self, rows: NDArray[Any], request: FolderRequest) -> Packed | None:
        encoded = bfloat16_to_float8(rows, 0, lambda scales: stored_scales(scales, request.stored_dtype))
        return None if encoded is None else {"weight": encoded[0], "weight_scale": encoded[1]}


class BlockFloat8(_Float8):
    """A float32 scale for each block of 128 x 128."""

    name, label = "fp8-block", "FP8-BLOCK"
    summary = "FP8, a scale for each block of 128 x 128 (DeepSeek, Qwen3)"
    group, row_step = BLOCK, BLOCK

    def why_not(self, grid: Grid, n_in: int, n_out: int, *, last: bool = True) -> str | None:
        """Runtimes need whole blocks of inputs, and of outputs in all but the last of the linears that they merge."""
        if n_in % BLOCK or (n_out % BLOCK and not last):
            dimension = f"{n_in} inputs" if n_in % BLOCK else f"{n_out} outputs"
            return f"its {dimension} are not a multiple of {BLOCK}; -t fp8 takes any shape"
        return None

    def stored(self, request: FolderRequest, n_in: int, n_out: int) -> Stored:
        blocks = (-(-n_out // BLOCK), -(-n_in // BLOCK))
        return {"weight": ("F8_E4M3", (n_out, n_in)), "weight_scale_inv": ("F32", blocks)}

    def config(self, request: FolderRequest, names: Names) -> dict[str, Any]:
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
            "modules_to_not_convert": names.every_kept(),
        }

    def encode(self, rows: Array, request: FolderRequest, surveyed: Any) -> Packed:
        scales = scales_of(block_maxima(rows))
        return {"weight": to_float8(rows, scales), "weight_scale_inv": scales}

    def encode_bfloat16(self, rows: NDArray[Any], request: FolderRequest) -> Packed | None:
        encoded = bfloat16_to_float8(rows, BLOCK, lambda scales: scales)
        return None if encoded is None else {"weight": encoded[0], "weight_scale_inv": encoded[1]}


def stored_scales(scales: Array, dtype: str) -> Array:
    """Positive scales with values of "BF16" or "F16", as float32; those of "F16" are rounded up, never to 0."""
    rounded = scales.astype(NUMPY_DTYPES[dtype])
    if dtype == "F16":
        low = rounded.astype(np.float32) < scales
        rounded = np.where(low, np.nextafter(rounded, np.float16(np.inf)), rounded)
    return rounded.astype(np.float32)
