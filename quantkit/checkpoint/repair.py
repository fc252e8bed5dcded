"""Traces of training and quantization tools in a checkpoint's tensors: removed if that is exact, else refused.

Removed, with a note: wrapper prefixes of every tensor, scales of an f8 KV cache, a quantization_config over
16-bit weights. Refused by name: packed weights, unmerged adapters, empty tensors.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.quantized.settings import is_possibly_stale, without_quantization
from quantkit.checkpoint.tensor import TensorInfo
from quantkit.errors import CheckpointError, UnsupportedError

# PEFT, torch.compile, DDP and DeepSpeed, FSDP, activation checkpointing.
_PREFIXES = ("base_model.model.", "_orig_mod.", "module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# FSDP, torch.compile and activation checkpointing also wrap single layers, so their prefixes occur inside a name.
_INFIX = re.compile(r"(?<=\.)(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
# Scales of an f8 KV cache and of f8 attention: vLLM's, AutoFP8's and compressed-tensors' spellings.
_KV_SCALE = re.compile(
    r"\.(self_attn|self_attention|attn|attention)\.(attn\.)?"
    r"((k|v|q|kv|prob_output)_(scale|zero_point)|(k|v|q|qkv)_proj\.((k|v|q)_scale|output_scale))$"
)
_PACKED = (
    (re.compile(r"\.SCB$"), "by bitsandbytes in 8 bit", "merge or save the model in 16 bit"),
    (
        re.compile(r"\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+)$"),
        "by bitsandbytes in 4 bit",
        "merge or save the model in 16 bit",
    ),
    (re.compile(r"\.weight_scale_2$"), "by NVIDIA ModelOpt (NVFP4)", "take the original 16-bit checkpoint"),
)
# A part of each name that `refuse_packed` refuses: most checkpoints have none of them.
_SIGNS = (
    *("SCB", "absmax", "quant_map", "quant_state", "weight_scale_2", ".biases", "flat_param"),
    *(".lora_A.", ".base_layer.", ".qweight", ".weight_packed"),
)
_SIXTEEN_BITS = ("BF16", "F16", "F32", "F64")


def unwrap_names(tensors: Mapping[str, TensorInfo]) -> tuple[dict[str, TensorInfo], list[str]]:
    """(tensors by name without the prefixes of wrappers, the notes on them); other names stay unchanged."""
    names = list(tensors)
    removed: list[str] = []
    while names and (prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in names)), None)):
        names = [name.removeprefix(prefix) for name in names]
        removed.append(prefix)
    inner = [_INFIX.sub("", name) for name in names]
    if inner != names:
        removed += sorted({match[0] for name in names for match in _INFIX.finditer(name)})
    if not removed or len(set(inner)) != len(inner):
        return dict(tensors), []
    renamed = {name: replace(tensor, name=name) for name, tensor in zip(inner, tensors.values(), strict=True)}
    return renamed, [f"a wrapper's prefix is taken off the tensor names ({', '.join(removed)})"]


def drop_kv_scales(tensors: Mapping[str, TensorInfo]) -> tuple[dict[str, TensorInfo], list[str]]:
    """(tensors without the scales of an f8 KV cache, which change no weight, and the note on them)."""
    dropped = [name for name in tensors if _KV_SCALE.search(name)]
    if not dropped:
        return dict(tensors), []
    kept = {name: tensor for name, tensor in tensors.items() if not _KV_SCALE.search(name)}
    return kept, [f"scales of an f8 KV cache are left out ({len(dropped)}, such as {shown(dropped[0])})"]


def refuse_packed(tensors: Mapping[str, TensorInfo], where: str) -> None:
    """Refuse tensors that are not plain weights, by the tool that made them.

    Raises:
        UnsupportedError: the weights are packed by a quantizer.
        CheckpointError: an adapter is not merged, the weights are flattened by FSDP, or tensors are empty.
    """
    every_name = "\n".join(tensors)
    for name in tensors if any(sign in every_name for sign in _SIGNS) else ():
        for pattern, tool, remedy in _PACKED:
            if pattern.search(name):
                raise UnsupportedError(f"{where} is quantized {tool} (it has {shown(name)}); {remedy}")
        if name.endswith(".biases") and _is_mlx(tensors, name):
            raise UnsupportedError(
                f"{where} is quantized by MLX (it has {shown(name)}); take the original 16-bit model, or make one "
                "with `mlx_lm.fuse --de-quantize`"
            )
        if ".lora_A." in name or ".base_layer." in name:
            raise CheckpointError(
                f"{where} has an adapter (LoRA) that is not merged ({shown(name)}); merge it into the weights first "
                "(PEFT's merge_and_unload)"
            )
        if name.split(".")[-1].startswith("_flat_param") or name.endswith("flat_param"):
            raise CheckpointError(
                f"{where} has weights that FSDP flattened ({shown(name)}); save the model with FULL_STATE_DICT"
            )
        if name.endswith((".qweight", ".weight_packed")):
            raise UnsupportedError(
                f"{where} is already quantized (it has packed weights, {shown(name)}); take the original checkpoint"
            )
    empty = [name for name, tensor in tensors.items() if not tensor.nbytes and name.endswith("weight")]
    if empty:
        raise CheckpointError(
            f"{len(empty)} of {len(tensors)} tensors of {where} are empty (such as {shown(empty[0])}), as DeepSpeed "
            "ZeRO-3 saves them; consolidate the weights with zero_to_fp32.py"
        )


def _is_mlx(tensors: Mapping[str, TensorInfo], biases: str) -> bool:
    weight = tensors.get(biases.removesuffix("biases") + "weight")
    return weight is not None and weight.dtype == "U32"


def drop_stale_quantization(
    config: dict[str, Any], tensors: Collection[TensorInfo]
) -> tuple[dict[str, Any], list[str]]:
    """(config without the quantization_config that a merge into 16 bits left in it, and the note on it)."""
    method = is_possibly_stale(config)
    if method is None or any(tensor.dtype not in _SIXTEEN_BITS for tensor in tensors):
        return config, []
    note = f"config.json names {method} as the quantization, but the weights are not quantized; this setting is ignored"
    return without_quantization(config), [note]
