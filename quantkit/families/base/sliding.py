"""Which layers have a sliding window, in config.json and in a GGUF."""

from collections.abc import Mapping
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.family import Key
from quantkit.families.base.hyperparameters import optional_size

_KINDS = {"sliding_attention": True, "full_attention": False}


def sliding_layers(config: Mapping[str, Any], n_layer: int, pattern: int) -> list[bool]:
    """Whether each layer has a sliding window, from `layer_types`; by default the last of `pattern` layers has none.

    Raises:
        CheckpointError: `layer_types` is not a list of one entry per layer.
        UnsupportedError: a layer is neither `sliding_attention` nor `full_attention`.
    """
    kinds = config.get("layer_types")
    if kinds is None:
        return [(layer + 1) % pattern != 0 for layer in range(n_layer)]
    if not isinstance(kinds, list) or len(kinds) != n_layer:
        raise CheckpointError(f"config.json: layer_types must list the kinds of {n_layer} layers, not {kinds!r}")
    for kind in kinds:
        if kind not in _KINDS:
            raise UnsupportedError(
                f"config.json: layer_types contains {kind!r}, but llama.cpp supports only {' and '.join(_KINDS)} here"
            )
    return [_KINDS[kind] for kind in kinds]


def pattern_of(config: Mapping[str, Any], default: int) -> int:
    """The setting of older configs, as published and as transformers 5 saves it."""
    return optional_size(config, "sliding_window_pattern", "_sliding_window_pattern") or default


def pattern_keys(arch: str, layers: list[bool], pattern: int) -> list[Key]:
    """The layers as an array key; no key if llama.cpp's own pattern gives the same (load_swa_pattern)."""
    if layers == [(layer + 1) % pattern != 0 for layer in range(len(layers))]:
        return []
    return [Key(f"{arch}.attention.sliding_window_pattern", "bools", layers)]
