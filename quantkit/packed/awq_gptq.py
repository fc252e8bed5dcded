"""AWQ (AutoAWQ's GEMM format) and GPTQ (AutoGPTQ's format) as formats of folders."""

from typing import Any

from quantkit.packed.config import awq_config, gptq_config
from quantkit.packed.formats import FolderRequest, IntegerFormat, Names, Packed, Stored
from quantkit.packed.packing import pack_awq, pack_gptq, packed_shapes, why_not_packed
from quantkit.quant.factor import LEAST_DAMP
from quantkit.quant.grid import Grid, Quantized


class Awq(IntegerFormat):
    """AWQ: every group has its own zero point."""

    name, label, summary, dtype = "awq", "AWQ", "AWQ, AutoAWQ's GEMM format", "float16"

    def grid(self, bits: int, group: int | None, *, symmetric: bool) -> Grid:
        return super().grid(bits, group, symmetric=False)

    def warnings(self, request: FolderRequest) -> tuple[str, ...]:
        bits, groups = request.grid.bits, super().warnings(request)
        if bits == 4:
            return groups
        text = f"AutoAWQ and most kernels of vLLM load AWQ of 4 bits only; more loaders read GPTQ of {bits} bits"
        return (text, *groups)

    def why_not(self, grid: Grid, n_in: int, n_out: int, *, last: bool = True) -> str | None:
        return why_not_packed("awq", grid, n_in, n_out)

    def stored(self, request: FolderRequest, n_in: int, n_out: int) -> Stored:
        return packed_shapes("awq", request.grid, n_in, n_out)

    def config(self, request: FolderRequest, names: Names) -> dict[str, Any]:
        return awq_config(request.grid, names.kept, names.quantized)

    def pack(self, quantized: Quantized, request: FolderRequest) -> Packed:
        return pack_awq(quantized)


class Gptq(IntegerFormat):
    """GPTQ, of version 1 if symmetric, else of version 2."""

    name, label, summary, dtype = "gptq", "GPTQ", "GPTQ, AutoGPTQ's format", "float16"

    def why_not(self, grid: Grid, n_in: int, n_out: int, *, last: bool = True) -> str | None:
        return why_not_packed("gptq", grid, n_in, n_out)

    def stored(self, request: FolderRequest, n_in: int, n_out: int) -> Stored:
        return packed_shapes("gptq", request.grid, n_in, n_out)

    def config(self, request: FolderRequest, names: Names) -> dict[str, Any]:
        return gptq_config(
            request.grid,
            names.kept,
            names.quantized,
            desc_act=not request.trivial_groups,
            damp_percent=LEAST_DAMP if request.damp is None else request.damp,
            static_groups=request.static_groups,
        )

    def pack(self, quantized: Quantized, request: FolderRequest) -> Packed:
        return pack_gptq(quantized)
