"""Granite with sliding windows: Granite's graph with attention sinks and windows in three of four layers.

Shape of the GGUF: llama.cpp's `granite_swa` architecture (src/models/granite-swa.cpp). Layers may lack rotary
positions; the others share one base.
"""

from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, optional_size, size
from quantkit.families.base.sliding import sliding_layers
from quantkit.families.base.traits import Traits
from quantkit.families.granite import CONFIG, check_granite, granite_keys, without_plain_width
from quantkit.families.granite import FORWARD as GRANITE_FORWARD
from quantkit.families.llama import ATTENTION, ENDS, MLP
from quantkit.forward.config_keys import Config
from quantkit.forward.settings import window
from quantkit.tokenizer.roles import LLAMA_ROLES

_PATTERN = 4

SINKS = Rule("model.layers.{layer}.self_attn.sinks", "blk.{layer}.attn_sinks.weight", ("n_head",))

# transformers' GraniteSWAConfig, beside Granite's settings.
WINDOW_DEFAULTS: dict[str, Any] = {"sliding_window": 128}
DEFAULTS: dict[str, dict[str, Any]] = {
    "granite_swa": {
        **CONFIG,
        **WINDOW_DEFAULTS,
        "max_position_embeddings": 8192,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
}


def rope_layers(config: Config) -> list[bool]:
    """Whether each layer has rotary positions: by layer_rope_theta, where 0 is none, or by no_rope_layers."""
    bases = config.get("layer_rope_theta")
    stated = bases if bases is not None else config.get("no_rope_layers")
    return [bool(value) for value in stated] if stated else [True] * size(config, "num_hidden_layers")


def prepare_windows(config: dict[str, Any], family: str) -> dict[str, Any]:
    """Refuse what llama.cpp's graph does not have: a window in no layer, several bases of rotary positions.

    Raises:
        CheckpointError: a list does not have one entry per layer, or sliding_window is missing.
        UnsupportedError: see above.
    """
    check_granite(config, family)
    layers = size(config, "num_hidden_layers")
    if optional_size(config, "sliding_window") is None:
        raise CheckpointError(f"config.json has no sliding_window, but llama.cpp runs {family} with one only; add it")
    bases = config.get("layer_rope_theta")
    if len(rope_layers(config)) != layers:
        raise CheckpointError(f"config.json: layer_rope_theta and no_rope_layers must list {layers} layers")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    base = rope.get("rope_theta", config.get("rope_theta"))
    others = sorted({theta for theta in bases or () if theta not in (0, base)})
    if others:
        raise UnsupportedError(
            f"config.json: layer_rope_theta has {others[0]}, but llama.cpp runs {family} only with rope_theta, which is"
            f" {base}, or 0; a GGUF cannot express this setting"
        )
    return without_plain_width(config)


def window_keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The window, its layers, and the layers with rotary positions where some have none."""
    config = sizes.config
    slides = [layer % _PATTERN != 0 for layer in range(sizes.n_layer)]
    if config.get("layer_types") is not None:
        slides = sliding_layers(config, sizes.n_layer, _PATTERN)
    rotated = rope_layers(config)
    return [
        Key(f"{arch}.attention.sliding_window", "u32", size(config, "sliding_window")),
        Key(f"{arch}.attention.sliding_window_pattern", "bools", slides),
        *([] if all(rotated) else [Key(f"{arch}.attention.rope_pattern", "bools", rotated)]),
    ]


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    return [*granite_keys(arch, sizes), *window_keys(arch, sizes)]


ATTENTION_FORWARD = replace(
    GRANITE_FORWARD.attention,
    sinks="sinks",
    window=window(lambda _, layer: layer % _PATTERN != 0),
    rope=lambda config, layer: config if rope_layers(config)[layer] else None,
)
TRAITS = Traits(sliding_every=_PATTERN)

FAMILY = Family(
    name="Granite with windows",
    models="Granite SWASH 2B",
    architectures=("GraniteSWAForCausalLM",),
    gguf_arch="granite_swa",
    rules=(*ATTENTION, SINKS, *MLP, *ENDS),
    keys=_keys,
    defaults=DEFAULTS,
    prepare=lambda config: prepare_windows(config, "Granite with windows"),
    rope_kinds=("default", "linear", "yarn", "dynamic"),
    forward=replace(GRANITE_FORWARD, attention=ATTENTION_FORWARD),
    traits=TRAITS,
    token_roles=LLAMA_ROLES,
)
