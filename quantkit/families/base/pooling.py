"""The pooling of an embedding model: sentence-transformers' modules.json, and the key that llama.cpp has for it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.checkpoint import Checkpoint
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.family import Key
from quantkit.families.base.hyperparameters import Hyperparameters

SETTING = "pooling"
"""The name under which the config holds the kind of pooling."""

# llama.cpp's llama_pooling_type
_KINDS = {"mean": 1, "cls": 2, "lasttoken": 3}
_FLAGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "lasttoken"}


def resolve_pooling(checkpoint: Checkpoint) -> None:
    """Add the pooling of an embedding model to the config of an open checkpoint; others stay as they are.

    Raises:
        CheckpointError: modules.json names a module without a readable config.json.
        UnsupportedError: a kind of pooling that llama.cpp does not have.
    """
    kind = pooling_of(checkpoint.folder)
    if kind is not None:
        checkpoint.config = {**checkpoint.config, SETTING: kind}


def pooling_of(folder: Path) -> str | None:
    """`mean`, `cls` or `lasttoken` by the modules.json in `folder`; None without a module that pools.

    Raises: see `resolve_pooling`.
    """
    modules = _read(folder / "modules.json")
    if not isinstance(modules, list):
        return None
    paths = [
        str(module.get("path"))
        for module in modules
        if isinstance(module, Mapping) and str(module.get("type")).endswith("Pooling")
    ]
    if not paths:
        return None
    path = folder / paths[0] / "config.json"
    settings = _read(path) if ".." not in path.parts else None
    if not isinstance(settings, Mapping):
        raise CheckpointError(f"{path} cannot be read, but modules.json names it; download it again")
    kind = next((kind for flag, kind in _FLAGS.items() if settings.get(flag)), settings.get("pooling_mode"))
    if kind not in _KINDS:
        raise UnsupportedError(
            f"{path} states another pooling than mean, cls or lasttoken; llama.cpp supports only these"
        )
    return str(kind)


def pooling_keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The key for the pooling, if the checkpoint states one."""
    kind = sizes.config.get(SETTING)
    return [Key(f"{arch}.pooling_type", "u32", _KINDS[kind])] if kind in _KINDS else []


def as_bare_model(config: dict[str, Any]) -> None:
    """Give a model that was saved without a head its embedding as one, as llama.cpp does; a vector needs no head.

    Raises:
        UnsupportedError: attention to later tokens.
    """
    if config.get("is_causal") is False:
        raise UnsupportedError(
            "config.json: is_causal is false; quantkit converts models of this family with causal attention only"
        )
    name = str(config["architectures"][0])
    if name.endswith("Model"):
        config.update(architectures=[name.removesuffix("Model") + "ForCausalLM"], tie_word_embeddings=True)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
