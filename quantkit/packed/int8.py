"""compressed-tensors folders of W8A8: 8-bit integers, a scale for each row; a runtime rounds each token to 8 bits too.

Source: compressed-tensors' preset W8A8 and its layout int-quantized, vLLM's `CompressedTensorsW8A8Int8`.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from quantkit.packed.compressed_config import compressed_config
from quantkit.packed.float8 import stored_scales
from quantkit.packed.formats import FolderRequest, IntegerFormat, Names, Packed, Stored
from quantkit.quant.grid import Grid, Quantized

INT8_LAYOUT = "int-quantized"


class Int8(IntegerFormat):
    """SmoothQuant's scales, weights rounded as GPTQ."""

    name, label, summary = "w8a8", "W8A8", "8-bit integers, activations too (compressed-tensors), by SmoothQuant"
    bits, group, group_sizes = 8, -1, ()

    def grid(self, bits: int, group: int | None, *, symmetric: bool) -> Grid:
        return Grid(8, -1, symmetric=True)

    def why_not(self, grid: Grid, n_in: int, n_out: int, *, last: bool = True) -> str | None:
        return None

    def stored(self, request: FolderRequest, n_in: int, n_out: int) -> Stored:
        return {"weight": ("I8", (n_out, n_in)), "weight_scale": (request.stored_dtype, (n_out, 1))}

    def config(self, request: FolderRequest, names: Names) -> dict[str, Any]:
        weights = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False}
        activations = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
        return compressed_config(INT8_LAYOUT, names, weights, activations)

    def as_stored(self, quantized: Quantized, request: FolderRequest) -> Quantized:
        """Scales are positive, as kernels for 8-bit integers expect them: the sign goes to the integers."""
        negative = quantized.scales < 0
        q = quantized.q.astype(np.int16) - 128
        q = np.where(negative, np.minimum(-q, 127), q)
        scales = stored_scales(np.abs(quantized.scales), request.stored_dtype)
        return replace(quantized, q=(q + 128).astype(np.uint8), scales=scales)

    def pack(self, quantized: Quantized, request: FolderRequest) -> Packed:
        weight = (quantized.q.astype(np.int16) - 128).astype(np.int8)
        return {"weight": weight, "weight_scale": quantized.scales}
