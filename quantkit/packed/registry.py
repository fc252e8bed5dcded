"""Every format of `-t` that is a folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.checkpoint.quantized.mlx import is_mlx
from quantkit.checkpoint.quantized.settings import quantization_config
from quantkit.packed.activations import activations_of
from quantkit.packed.awq_gptq import Awq, Gptq
from quantkit.packed.float4 import MXFP4_LAYOUT, NVFP4_LAYOUT, Mxfp4, Nvfp4, Nvfp4Activations
from quantkit.packed.float8 import BlockFloat8, Float8
from quantkit.packed.formats import MLX_GPTQ, Format
from quantkit.packed.int8 import INT8_LAYOUT, Int8
from quantkit.packed.mlx import BITS, Mlx, MlxFeedback, MlxMxfp4
from quantkit.packed.pack_quantized import LAYOUT, PackQuantized

FORMATS: Mapping[str, Format] = {
    folder_format.name: folder_format
    for folder_format in (
        Awq(),
        Gptq(),
        PackQuantized(4),
        PackQuantized(8),
        Int8(),
        Float8(),
        BlockFloat8(),
        Nvfp4(),
        Mxfp4(),
        Nvfp4Activations(),
        *(Mlx(bits) for bits in BITS),
        MlxMxfp4(),
        *(MlxFeedback(name) for name in MLX_GPTQ),
    )
}


def type_of(config: Mapping[str, Any]) -> str | None:
    """The name in `FORMATS` of a folder with this config.json; None for unquantized weights and other formats."""
    quantization = quantization_config(config)
    method, layout = quantization.get("quant_method"), quantization.get("format")
    if method in ("awq", "gptq"):
        return str(method)
    if is_mlx(quantization):
        if quantization.get("mode") == "mxfp4":
            return MlxMxfp4.name
        name = f"mlx-{quantization['bits']}bit"
        return name if name in FORMATS else None
    if method == "fp8" and quantization.get("weight_block_size") is not None:
        return BlockFloat8.name
    if method == "compressed-tensors" and layout == "float-quantized":
        return Float8.name
    if method == "compressed-tensors" and layout in (NVFP4_LAYOUT, MXFP4_LAYOUT):
        if layout == NVFP4_LAYOUT and activations_of(quantization) is not None:
            return Nvfp4Activations.name
        return Nvfp4.name if layout == NVFP4_LAYOUT else Mxfp4.name
    if method == "compressed-tensors" and layout == INT8_LAYOUT:
        return Int8.name
    if method == "compressed-tensors" and layout == LAYOUT:
        groups = quantization.get("config_groups")
        group = next(iter(groups.values()), None) if isinstance(groups, dict) else None
        weights = group.get("weights") if isinstance(group, dict) else None
        name = f"w{weights.get('num_bits')}a16" if isinstance(weights, dict) else ""
        return name if name in FORMATS else None
    return None


def read_type(folder: Path) -> str | None:
    """The name in `FORMATS` of a folder of quantized weights, by its config.json; None for any other folder."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return type_of(config) if isinstance(config, dict) else None
