"""LoRA adapters as PEFT saves them, with random matrices from numpy: same arguments, same bytes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from demo.safetensors_file import write_safetensors
from quantkit.checkpoint import open_checkpoint

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdapterCase:
    """An adapter. `targets`: ends of the names of modules with low-rank matrices; `saved`: of tensors saved whole.

    `settings` are keys of adapter_config.json beside the usual ones. `conv1d`: weights are stored as (in, out).
    """

    targets: tuple[str, ...] = LINEARS
    settings: Mapping[str, Any] = field(default_factory=dict)
    rank: int = 4
    ranks: Mapping[str, int] = field(default_factory=dict)
    saved: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    bias: bool = False
    conv1d: bool = False
    seed: int = 0
    scale: float = 1.0


def write_adapter(folder: Path, base: Path, case: AdapterCase) -> Path:
    """Write adapter_config.json and adapter_model.safetensors for the checkpoint `base`."""
    rng = np.random.RandomState(case.seed)
    with open_checkpoint(str(base)) as opened:
        shapes = {name: tensor.shape for name, tensor in opened.tensors.items()}
    # GPT-2's checkpoint may lack the prefix that its class has
    inner = "transformer." if case.conv1d and not any(name.startswith("transformer.") for name in shapes) else ""
    tensors: dict[str, np.ndarray] = {}

    def put(name: str, *shape: int, spread: float = 0.1, mean: float = 0.0) -> None:
        tensors[name] = np.float32(mean) + np.float32(spread) * rng.standard_normal(shape).astype(np.float32)

    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        at = PREFIX + inner + module
        if any(name.endswith(saved) for saved in case.saved):
            put(f"{at}.{leaf}", *shape, mean=float(len(shape) == 1))
        if leaf != "weight" or not any(module.endswith(target) for target in case.targets):
            continue
        rank = next((rank for end, rank in case.ranks.items() if module.endswith(end)), case.rank)
        if module.endswith("embed_tokens"):
            put(f"{at}.lora_embedding_A", rank, shape[0], spread=0.3)
            put(f"{at}.lora_embedding_B", shape[1], rank, spread=0.3)
            out = shape[1]
        else:
            out, inputs = reversed(shape) if case.conv1d else shape
            put(f"{at}.lora_A.weight", rank, inputs)
            put(f"{at}.lora_B.weight", out, rank)
            if case.bias:
                put(f"{at}.lora_B.bias", out)
        if case.settings.get("use_dora"):
            put(f"{at}.lora_magnitude_vector", out, mean=1.0)
    if case.tokens:
        width = shapes["model.embed_tokens.weight"][1]
        put(f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta", len(case.tokens), width)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": case.rank,
        "lora_alpha": 6,
        "target_modules": list(case.targets),
        "modules_to_save": [name.removesuffix(".weight") for name in case.saved if name.endswith(".weight")] or None,
        "trainable_token_indices": list(case.tokens) or None,
        "lora_bias": case.bias,
        "fan_in_fan_out": case.conv1d,
        **case.settings,
    }
    return write_adapter_files(folder, settings, tensors)


def write_adapter_files(folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Path:
    """Write the two files of an adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(dict(settings)))
    write_safetensors(folder / "adapter_model.safetensors", {name: ("F32", value) for name, value in tensors.items()})
    return folder


def adapter_settings(folder: Path, **settings: Any) -> Path:
    """Change keys of adapter_config.json; None removes one."""
    path = folder / "adapter_config.json"
    values = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    return folder
