"""The quantization of a checkpoint, from its settings and the headers of its tensors."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.checkpoint import TensorInfo
from quantkit.checkpoint.quantized.mlx import is_mlx
from quantkit.checkpoint.quantized.source import QuantizedWeights
from quantkit.checkpoint.tensor import FLOAT8
from quantkit.inspection.description import Quantization

_PACKED_WEIGHTS = (".qweight", ".weight_packed")
_LAYER = re.compile(r".*?\.\d+\.")


def is_packed(packing: Mapping[str, Any]) -> bool:
    """Whether the weights are not floats that a tensor of the model has: MXFP4 blocks and FP8 are tensors of it."""
    method = packing.get("quant_method")
    plain = method in ("fp8", "fbgemm_fp8", "mxfp4") or (
        method == "compressed-tensors" and "float" in str(packing.get("format"))
    )
    return bool(packing) and not plain


def describe_quantization(
    packing: Mapping[str, Any], quantized: QuantizedWeights | None, tensors: Sequence[TensorInfo]
) -> Quantization | None:
    """The quantization of a config, and the packed matrices: those that were opened, else by the names of tensors."""
    if not is_packed(packing):
        return None
    packed = _packed(tensors) if quantized is None or not quantized.has_shapes else set(quantized.linears)
    packed |= {tensor.name.removesuffix(".weight") for tensor in tensors if tensor.dtype in FLOAT8} & _matrices(tensors)
    layout = packing.get("checkpoint_format", packing.get("version", packing.get("format")))
    if quantized is not None and quantized.scheme.layout is not None:
        layout = quantized.scheme.layout
    symmetric, act_order = packing.get("sym"), packing.get("desc_act")
    if symmetric is None and isinstance(packing.get("zero_point"), bool):
        symmetric = not packing["zero_point"]
    if symmetric is None and isinstance(_weights(packing).get("symmetric"), bool):
        symmetric = _weights(packing)["symmetric"]
    return Quantization(
        method=_tool(packing),
        bits=bits_of(packing) if quantized is None else quantized.scheme.bits,
        group=_group_size(packing) if quantized is None else quantized.scheme.group,
        linears=len(packed),
        kept=tuple(sorted({_LAYER.sub("", name, count=1) for name in _matrices(tensors) - packed})),
        symmetric=symmetric if isinstance(symmetric, bool) else None,
        act_order=act_order if isinstance(act_order, bool) else None,
        packing=layout if isinstance(layout, str) else None,
    )


def title_of(packing: Mapping[str, Any], quantized: QuantizedWeights | None) -> str | None:
    """The quantization in words: "awq 4 bit, group 128"."""
    if quantized is not None:
        return quantized.scheme.title
    if not packing:
        return None
    words, bits, size = _tool(packing), bits_of(packing), _group_size(packing)
    words += f" {bits} bit" if bits else ""
    return words + (f", group {size}" if size and size > 0 else "")


def bits_of(packing: Mapping[str, Any]) -> int | None:
    """The bits of a weight that the settings state."""
    weights = _weights(packing)
    for value in (packing.get("bits"), packing.get("w_bit"), weights.get("num_bits")):
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 8:
            return value
    return 4 if packing.get("load_in_4bit") is True or packing.get("_load_in_4bit") is True else None


def _matrices(tensors: Sequence[TensorInfo]) -> set[str]:
    return {
        tensor.name.removesuffix(".weight")
        for tensor in tensors
        if tensor.name.endswith(".weight") and len(tensor.shape) > 1
    }


def _packed(tensors: Sequence[TensorInfo]) -> set[str]:
    return {
        tensor.name.rpartition(".")[0]
        for tensor in tensors
        if tensor.name.endswith(_PACKED_WEIGHTS)
        or (tensor.dtype in ("U32", "U8", "I8") and tensor.name.endswith(".weight"))
    }


def _weights(packing: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weight scheme of the first layer group of compressed-tensors."""
    groups = packing.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = first.get("weights") if isinstance(first, dict) else {}
    return weights if isinstance(weights, dict) else {}


def _group_size(packing: Mapping[str, Any]) -> int | None:
    size = packing.get("group_size", packing.get("q_group_size", _weights(packing).get("group_size")))
    return size if type(size) is int else None


def _tool(packing: Mapping[str, Any]) -> str:
    if packing.get("quant_method"):
        return str(packing["quant_method"])
    bitsandbytes = "load_in_4bit" in packing or "load_in_8bit" in packing
    return "bitsandbytes" if bitsandbytes else "mlx" if is_mlx(packing) else "quantized"
