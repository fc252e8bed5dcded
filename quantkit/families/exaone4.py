"""EXAONE 4: norms after attention and MLP, and on each head of queries and keys; the 32B has a window and no rope
in every fourth layer.

Shape of the GGUF: llama.cpp's `exaone4` architecture (src/models/exaone4.cpp), which has windows with 64 layers only.
"""

from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families.base.family import Computed, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, optional_size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.sliding import sliding_layers
from quantkit.families.base.traits import Traits
from quantkit.families.llama import ENDS, llama3_rope_factors
from quantkit.families.qwen2 import PLAIN_MLP, PROJECTIONS
from quantkit.families.qwen3 import HEAD_NORM_RULES
from quantkit.forward.config_keys import Config
from quantkit.forward.description import Architecture
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import HEAD_NORMS, slides, window

_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_PATTERN = 4
_LAYERS_WITH_WINDOW = 64

NORMS = (
    Rule(f"{_AT}.post_attention_layernorm.weight", f"{_TO}.post_attention_norm.weight", ("hidden",)),
    Rule(f"{_AT}.post_feedforward_layernorm.weight", f"{_TO}.post_ffw_norm.weight", ("hidden",)),
)

# transformers' Exaone4Config.
DEFAULTS: dict[str, dict[str, Any]] = {
    "exaone4": {
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "sliding_window_pattern": _PATTERN,
        "tie_word_embeddings": False,
    }
}


def _every_fourth(layer: int) -> bool:
    return (layer + 1) % _PATTERN != 0


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family="EXAONE 4")
    layers = config.get("num_hidden_layers")
    if not isinstance(layers, int):
        return config
    stated = layers_with_window(config, layers)
    runs = layers == _LAYERS_WITH_WINDOW and stated == [_every_fourth(layer) for layer in range(layers)]
    if any(stated) and not runs:
        raise UnsupportedError(
            f"config.json: a sliding window of {config.get('sliding_window')} tokens with {layers} layers; llama.cpp"
            f" runs EXAONE 4 with a window only in three of every {_PATTERN} of {_LAYERS_WITH_WINDOW} layers"
        )
    return config


def layers_with_window(config: Config, layers: int) -> list[bool]:
    """Whether each layer has the window."""
    if config.get("sliding_window") is None:
        return [False] * layers
    pattern = config.get("sliding_window_pattern")
    if config.get("layer_types") is None and isinstance(pattern, str):
        return [pattern[layer % len(pattern)] == "L" for layer in range(layers)]
    return sliding_layers(config, layers, pattern if isinstance(pattern, int) and pattern > 0 else _PATTERN)


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/exaone.py)."""
    result = [*base_keys(arch, sizes), Key(f"{arch}.vocab_size", "u32", sizes.vocab)]
    if (tokens := optional_size(sizes.config, "sliding_window")) is not None:
        result += [
            Key(f"{arch}.attention.sliding_window", "u32", tokens),
            Key(f"{arch}.attention.sliding_window_pattern", "bools", layers_with_window(sizes.config, sizes.n_layer)),
        ]
    return result


def _slides(config: Config, layer: int) -> bool:
    return config.get("sliding_window") is not None and slides(config, layer, _every_fourth(layer))


FORWARD = Architecture(
    attention_norm=None,
    after_attention="post_attention_layernorm",
    feed_norm=None,
    after_feed="post_feedforward_layernorm",
    attention=Attention(
        norms=HEAD_NORMS,
        rope=lambda config, layer: config if config.get("sliding_window") is None or _slides(config, layer) else None,
        window=window(_slides),
    ),
)

FAMILY = Family(
    name="EXAONE 4",
    models="EXAONE 4.0 1.2B/32B",
    architectures=("Exaone4ForCausalLM",),
    gguf_arch="exaone4",
    rules=(*PROJECTIONS, *HEAD_NORM_RULES, *NORMS, *PLAIN_MLP, *ENDS),
    keys=_keys,
    computed=(Computed("rope_freqs.weight", llama3_rope_factors),),
    defaults=DEFAULTS,
    prepare=_prepare,
    rope_kinds=("default", "llama3"),
    forward=FORWARD,
    traits=Traits(sliding_every=_PATTERN),
)
