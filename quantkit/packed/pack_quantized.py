"""compressed-tensors folders of integer weights (pack-quantized): W4A16 and W8A16.

Sources: compressed-tensors' `PackedQuantizationCompressor` and vLLM's `CompressedTensorsWNA16`. Groups in the order of
activation (`weight_g_idx`) left the format in August 2026; readers refuse them now, so they are not written.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from quantkit.errors import UsageError
from quantkit.packed.compressed_config import compressed_config
from quantkit.packed.float8 import stored_scales
from quantkit.packed.formats import FolderRequest, IntegerFormat, Names, Packed, Stored
from quantkit.packed.packing import WORD, pack_stream
from quantkit.quant.grid import Grid, Quantized

LAYOUT = "pack-quantized"


class PackQuantized(IntegerFormat):
    """Integers of `bits` bits in 32-bit words along the inputs; activations stay in 16 bits."""

    def __init__(self, bits: int) -> None:
        self.name, self.label, self.bits = f"w{bits}a16", f"W{bits}A16", bits
        self.summary = f"{bits}-bit integers (compressed-tensors), rounded as GPTQ or AWQ"

    def check(self, request: FolderRequest) -> None:
        """Raises UsageError for groups in the order of activation."""
        if not request.trivial_groups:
            raise UsageError(f"-t {self.name} has no groups by activation order; leave out --no-static-groups")

    def why_not(self, grid: Grid, n_in: int, n_out: int, *, last: bool = True) -> str | None:
        values = WORD // grid.bits
        if n_in % values or (not grid.symmetric and n_out % values):
            dimension = f"{n_in} inputs" if n_in % values else f"{n_out} outputs"
            return f"its {dimension} are not a multiple of {values}, the {grid.bits}-bit values of a word"
        return None

    def stored(self, request: FolderRequest, n_in: int, n_out: int) -> Stored:
        return stored_integers(request.grid, n_in, n_out, request.stored_dtype)

    def config(self, request: FolderRequest, names: Names) -> dict[str, Any]:
        return integer_config(request.grid, names)

    def as_stored(self, quantized: Quantized, request: FolderRequest) -> Quantized:
        return replace(quantized, scales=stored_scales(quantized.scales, request.stored_dtype))

    def pack(self, quantized: Quantized, request: FolderRequest) -> Packed:
        return pack_integers(quantized)


def stored_integers(grid: Grid, n_in: int, n_out: int, dtype: str) -> Stored:
    """The tensors of a linear of `n_in` inputs and `n_out` outputs, with scales of `dtype`."""
    groups = n_in // grid.group_size(n_in)
    stored = {
        "weight_packed": ("I32", (n_out, n_in * grid.bits // WORD)),
        "weight_scale": (dtype, (n_out, groups)),
        "weight_shape": ("I64", (2,)),
    }
    return stored if grid.symmetric else {**stored, "weight_zero_point": ("I32", (n_out * grid.bits // WORD, groups))}


def pack_integers(quantized: Quantized) -> Packed:
    """weight_packed along the inputs, float32 scales, weight_shape; zero points along the outputs if they differ."""
    grid = quantized.grid
    packed: Packed = {
        "weight_packed": pack_stream(quantized.q, grid.bits),
        "weight_scale": quantized.scales,
        "weight_shape": np.array(quantized.q.shape, np.int64),
    }
    if not grid.symmetric:
        packed["weight_zero_point"] = np.ascontiguousarray(pack_stream(quantized.zeros.T, grid.bits).T)
    return packed


def integer_config(grid: Grid, names: Names) -> dict[str, Any]:
    """The quantization_config of a folder of integer weights."""
    weights = {
        "num_bits": grid.bits,
        "type": "int",
        "strategy": "channel" if grid.group == -1 else "group",
        "group_size": None if grid.group == -1 else grid.group,
        "symmetric": grid.symmetric,
        "dynamic": False,
    }
    return compressed_config(LAYOUT, names, weights)
