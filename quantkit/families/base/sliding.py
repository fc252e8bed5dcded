"""Which layers have a sliding window, in config.json and in a GGUF."""

from collections.abc import Mapping
from typing import Any

from quantkit.families.base.family import Key
from quantkit.families.base.hyperparameters import optional_size
from quantkit.families.base.layer_kinds import layer_kinds

_KINDS = {"sliding_attention": True, "full_attention": False}


def sliding_layers(config: Mapping[str, Any], n_layer: int, pattern: int) -> list[bool]:
    """Whether each layer has a sliding window, from `layer_types`; by default the last of `pattern` layers has none.

    Raises:
        CheckpointError: `layer_types` is not a list of one entry per layer.
        UnsupportedError: a layer is not `sliding_attention` or `full_attention`.
    """
    kinds = layer_kinds(config, n_layer, _KINDS)
    if kinds is None:
        return [(layer + 1) % pattern != 0 for layer in range(n_layer)]
    return [_KINDS[kind] for kind in kinds]


def pattern_of(config: Mapping[str, Any], default: int) -> int:
    """The setting of older configs, as published and as transformers 5 saves it."""
    return optional_size(config, "sliding_window_pattern", "_sliding_window_pattern") or default


def pattern_keys(arch: str, layers: list[bool], pattern: int) -> list[Key]:
    """The layers as an array key; no key if llama.cpp's own pattern gives the same (load_swa_pattern)."""
    if layers == [(layer + 1) % pattern != 0 for layer in range(len(layers))]:
        return []
    return [Key(f"{arch}.attention.sliding_window_pattern", "bools", layers)]
