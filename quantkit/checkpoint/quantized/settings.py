"""The settings of a quantization, from config.json or a file beside it, in the shape of a quantization_config."""

from collections.abc import Mapping
from typing import Any

KEYS = ("quantization_config", "compression_config", "quantization")
"""The keys of config.json that state a quantization."""
BESIDE = ("quantize_config.json", "hf_quant_config.json")
"""Files that some tools write in place of a key of config.json: AutoGPTQ's, and NVIDIA ModelOpt's."""


def quantization_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint's quantization_config, {} where there is none; multimodal configs keep it in text_config."""
    text = config.get("text_config")
    for holder in (config, text if isinstance(text, dict) else {}):
        for key in KEYS[:2]:
            stated = holder.get(key)
            if isinstance(stated, dict) and stated:
                return stated
    return {}


def stated_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under any key; MLX has them under `quantization` alone in older folders."""
    older = config.get("quantization")
    return quantization_config(config) or (older if isinstance(older, dict) else {})


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json without the settings of a quantization."""
    plain = {key: value for key, value in config.items() if key not in KEYS}
    if isinstance(plain.get("text_config"), dict):
        plain["text_config"] = {key: value for key, value in plain["text_config"].items() if key not in KEYS}
    return plain


def from_file_beside(name: str, contents: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a file of BESIDE; ModelOpt's become those that it writes into config.json today."""
    inner = contents.get("quantization")
    if name == BESIDE[1] and isinstance(inner, dict):
        return {"quant_method": "modelopt", **inner}
    return dict(contents)


def is_possibly_stale(config: Mapping[str, Any]) -> str | None:
    """The quantizer that config.json names, where merges into 16 bit leave its setting behind; else None."""
    settings = stated_quantization(config)
    if not settings:
        return None
    method = settings.get("quant_method")
    if method == "bitsandbytes" or (method is None and ("load_in_4bit" in settings or "load_in_8bit" in settings)):
        return "bitsandbytes"
    return "MLX" if method is None and {"group_size", "bits"} <= settings.keys() else None
