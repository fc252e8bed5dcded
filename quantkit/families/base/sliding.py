"""Which layers look through a sliding window, as config.json says it and as a GGUF says it."""

from collections.abc import Mapping
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.family import Key
from quantkit.families.base.hyperparameters import optional_size

_KINDS = {"sliding_attention": True, "full_attention": False}


def sliding_layers(config: Mapping[str, Any], n_layer: int, pattern: int) -> list[bool]:
    """For each layer whether it slides: by `layer_types`, else the last of every `pattern` layers does not.

    Raises:
        CheckpointError: `layer_types` does not fit the model.
        UnsupportedError: a kind of layer that is neither.
    """
    given = config.get("layer_types")
    if given is None:
        return [(layer + 1) % pattern != 0 for layer in range(n_layer)]
    if not isinstance(given, list) or len(given) != n_layer:
        raise CheckpointError(f"config.json: layer_types must name the kinds of {n_layer} layers, not {given!r}")
    for kind in given:
        if kind not in _KINDS:
            raise UnsupportedError(f"config.json: layer_types has {kind!r}, which llama.cpp does not run here")
    return [_KINDS[kind] for kind in given]


def pattern_of(config: Mapping[str, Any], default: int) -> int:
    """`sliding_window_pattern`, as older configs state it."""
    return optional_size(config, "sliding_window_pattern") or default


def pattern_keys(arch: str, layers: list[bool], pattern: int) -> list[Key]:
    """The layers as an array, unless they are what llama.cpp takes by itself (load_swa_pattern, `pattern`)."""
    if layers == [(layer + 1) % pattern != 0 for layer in range(len(layers))]:
        return []
    return [Key(f"{arch}.attention.sliding_window_pattern", "bools", layers)]
