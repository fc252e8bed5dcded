"""The quantization_config of config.json, with the keys that each loader reads.

Read by: AutoAWQ (`AwqConfig`), AutoGPTQ (`BaseQuantizeConfig`), GPTQModel (`QuantizeConfig.from_quant_config`), optimum
(`GPTQQuantizer`), transformers 4 and 5 (`AwqConfig`, `GPTQConfig`) and vLLM (`AutoAWQConfig`, `AutoGPTQConfig`).
"""

import re
from collections.abc import Collection, Iterable
from typing import Any

from quantkit import __version__
from quantkit.packed.packing import gptq_version
from quantkit.quant.grid import Grid

QUANTIZE_CONFIG = "quantize_config.json"
"""Where AutoGPTQ and GPTQModel look before config.json; it holds the same as quantization_config."""

_BELOW = ".*"
_LAYER = re.compile(r".*?\.\d+\.")


def awq_config(grid: Grid, kept: Collection[str], quantized: Collection[str]) -> dict[str, Any]:
    """quantization_config of an AWQ folder. `kept`, `quantized`: names of linears ("model.layers.0.mlp.gate").

    "mtp.*" in `kept` stands for all linears below mtp. GPTQModel ignores modules_to_not_convert and reads `dynamic`.
    """
    config: dict[str, Any] = {
        "quant_method": "awq",
        "version": "gemm",
        "bits": grid.bits,
        "group_size": grid.group,
        "zero_point": True,
        "modules_to_not_convert": modules_to_not_convert(kept, quantized),
    }
    return config | _dynamic(kept, quantized)


def gptq_config(
    grid: Grid,
    kept: Collection[str],
    quantized: Collection[str],
    *,
    desc_act: bool,
    damp_percent: float,
    static_groups: bool = False,
) -> dict[str, Any]:
    """quantization_config of a GPTQ folder, and its quantize_config.json.

    `desc_act`: g_idx is not i // group_size. Names as in `awq_config`. For kept linears inside layers, GPTQModel and
    vLLM read `dynamic`; optimum, which replaces every linear by default, reads `modules_in_block_to_quantize`.
    """
    config: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": grid.bits,
        "group_size": grid.group,
        "sym": grid.symmetric,
        "desc_act": desc_act,
        "static_groups": static_groups,
        "true_sequential": False,
        "damp_percent": damp_percent,
        "lm_head": False,
        "checkpoint_format": "gptq" if gptq_version(grid) == 1 else "gptq_v2",
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"quantkit:{__version__}"]},
    }
    inside = [name for name in kept if _LAYER.match(name) and not name.endswith(_BELOW)]
    if inside:
        config["modules_in_block_to_quantize"] = [_endings(quantized, inside)]
    return config | _dynamic(kept, quantized)


def modules_to_not_convert(kept: Collection[str], quantized: Iterable[str]) -> list[str]:
    """The shortest names that match all of `kept` and nothing of `quantized`.

    AutoAWQ searches a name below its layer, transformers 4 and vLLM a full name, transformers 5 its two ends. The name
    below the layer works for all of them. If it is part of a quantized name ("mlp.gate" in "mlp.gate_proj"), the full
    name is used.
    """
    short = {_below_layer(name) for name in quantized}
    below = {name.removesuffix(_BELOW) for name in kept if name.endswith(_BELOW)}
    return sorted(below | {_shortened(name, short) for name in kept if not name.endswith(_BELOW)})


def _dynamic(kept: Collection[str], quantized: Iterable[str]) -> dict[str, Any]:
    """Patterns of unquantized linears for GPTQModel and vLLM: "-:" and an expression that matches from the start."""
    short = {_below_layer(name) for name in quantized}
    below = [name for name in kept if name.endswith(_BELOW)]
    kept = [name for name in kept if not name.endswith(_BELOW)]
    names = sorted({_shortened(name, short) for name in kept if _LAYER.match(name)})
    patterns = [f"-:^{'' if _LAYER.match(name) else '.*' + re.escape('.')}{re.escape(name)}$" for name in names]
    # outside the layers; the head, a name of one part, is never quantized by default
    patterns += [f"-:^{re.escape(name)}$" for name in kept if "." in name and not _LAYER.match(name)]
    patterns += [f"-:^{re.escape(name.removesuffix(_BELOW))}{re.escape('.')}.*" for name in below]
    return {"dynamic": {pattern: {} for pattern in patterns}} if patterns else {}


def _shortened(name: str, quantized: Collection[str]) -> str:
    short = _below_layer(name)
    return name if any(short in other for other in quantized) else short


def _below_layer(name: str) -> str:
    return _LAYER.sub("", name, count=1)


def _endings(quantized: Iterable[str], kept: Collection[str]) -> list[str]:
    """The shortest ends of names, in whole parts, so that each quantized name contains one and no kept name does."""
    endings = set()
    for name in {_below_layer(name) if not _hidden(_below_layer(name), kept) else name for name in quantized}:
        parts = name.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        endings.add(next((end for end in ends if not _hidden(end, kept)), name))
    return sorted(endings)


def _hidden(end: str, kept: Collection[str]) -> bool:
    return any(end in name for name in kept)
