"""Every format of `-t` that is a folder."""

from collections.abc import Mapping
from typing import Any

from quantkit.checkpoint.folder import quantization_config
from quantkit.packed.awq_gptq import Awq, Gptq
from quantkit.packed.float8 import BlockFloat8, Float8
from quantkit.packed.formats import Format

FORMATS: Mapping[str, Format] = {
    folder_format.name: folder_format for folder_format in (Awq(), Gptq(), Float8(), BlockFloat8())
}


def type_of(config: Mapping[str, Any]) -> str | None:
    """The name in `FORMATS` of a folder with this config.json; None for unquantized weights and other formats."""
    quantization = quantization_config(config)
    method, layout = quantization.get("quant_method"), quantization.get("format")
    if method in ("awq", "gptq"):
        return str(method)
    if method == "fp8" and quantization.get("weight_block_size") is not None:
        return BlockFloat8.name
    if method == "compressed-tensors" and layout == "float-quantized":
        return Float8.name
    return None
