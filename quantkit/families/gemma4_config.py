"""config.json of Gemma 4's text model: defaults, what llama.cpp does not run, and the sizes of each layer."""

from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.hyperparameters import optional_size, size
from quantkit.families.base.refusals import GELU, only
from quantkit.families.base.sliding import sliding_layers
from quantkit.families.gemma3 import read_local_rope
from quantkit.forward.config_keys import Config, given
from quantkit.forward.settings import slides
from quantkit.units import listed

# transformers takes this one where config.json has no layer_types.
PATTERN = 6
_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
}

# transformers' Gemma4TextConfig.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 262144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "rope_parameters": _ROPE,
    "sliding_window": 512,
    "vocab_size_per_layer_input": 262144,
    "hidden_size_per_layer_input": 256,
    "num_kv_shared_layers": 0,
}
# transformers' Gemma4UnifiedTextConfig.
UNIFIED_DEFAULTS = {
    **{key: value for key, value in DEFAULTS.items() if "per_layer" not in key},
    "max_position_embeddings": 262144,
    "sliding_window": 1024,
}


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """The sizes under their usual names; refuse what llama.cpp's graph has built in otherwise."""
    only(config, "hidden_activation", *GELU, family="Gemma 4")
    only(config, "attention_bias", False, family="Gemma 4")
    only(config, "use_bidirectional_attention", "vision", family="Gemma 4")
    config["rope_parameters"] = _checked_rope(config)
    read_local_rope(config)
    layers = sliding_layers(config, size(config, "num_hidden_layers"), PATTERN)
    layers[-1] = False  # as transformers does
    config["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in layers]
    if not config.get("enable_moe_block"):
        config |= dict.fromkeys(("num_experts", "top_k_experts", "moe_intermediate_size"))
    else:
        config["num_experts_per_tok"] = size(config, "top_k_experts")
        size(config, "num_experts")
        size(config, "moe_intermediate_size")
    size(config, "sliding_window")
    _refuse_other_sharing(config, layers)
    _refuse_other_inputs(config)
    return config


def _checked_rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    rope = config.get("rope_parameters") or _ROPE
    kinds = ("full_attention", "sliding_attention")
    if not isinstance(rope, Mapping) or not all(isinstance(rope.get(kind), Mapping) for kind in kinds):
        raise CheckpointError(f"config.json: rope_parameters must have an object for {listed(kinds)}, not {rope!r}")
    only(rope["full_attention"], "rope_type", "proportional", family="Gemma 4's global layers")
    only(rope["full_attention"], "factor", 1, family="Gemma 4's global layers")
    only(rope["sliding_attention"], "partial_rotary_factor", 1, family="Gemma 4's sliding layers")
    share = rope["full_attention"].get("partial_rotary_factor", 1.0)
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise CheckpointError(f"config.json: partial_rotary_factor must be a number from 0 to 1, not {share!r}")
    return rope


def _refuse_other_sharing(config: Mapping[str, Any], layers: Sequence[bool]) -> None:
    """llama.cpp takes the keys and values of the last two layers before the first shared one, a sliding one first."""
    shared = optional_size(config, "num_kv_shared_layers") if config.get("num_kv_shared_layers") else 0
    first = len(layers) - (shared or 0)
    if shared and (first < 2 or list(layers[first - 2 : first]) != [True, False]):
        raise UnsupportedError(
            f"config.json: num_kv_shared_layers is {shared}; llama.cpp shares the keys and values of the two layers"
            " before (a sliding and a global one), so a GGUF cannot express this setting"
        )


def _refuse_other_inputs(config: Mapping[str, Any]) -> None:
    if not config.get("hidden_size_per_layer_input"):
        return
    size(config, "hidden_size_per_layer_input")
    rows, vocabulary = size(config, "vocab_size_per_layer_input"), size(config, "vocab_size")
    if rows != vocabulary:
        raise UnsupportedError(
            f"config.json: vocab_size_per_layer_input is {rows}, but llama.cpp runs Gemma 4 only with vocab_size"
            f" {vocabulary}; a GGUF cannot express this setting"
        )


def is_sliding(config: Config, layer: int) -> bool:
    """Whether a layer attends to a window; the last one never does."""
    last = layer == int(config["num_hidden_layers"]) - 1
    return slides(config, layer, (layer + 1) % PATTERN != 0) and not last


def _global(config: Config, key: str, layer_key: str, default: int) -> int:
    """A size of global layers: under `key`, else as `layer_key` in the layers' settings (transformers 5)."""
    by_layer = config.get("per_layer_config")
    settings = by_layer.values() if isinstance(by_layer, Mapping) else ()
    nested = (layer.get(layer_key) for layer in settings if isinstance(layer, Mapping))
    return int(given(config, key, default=next((value for value in nested if value), default)))


def global_heads(config: Config) -> int:
    """Number of key heads of global layers."""
    n_head_kv = int(config["num_key_value_heads"])
    if not config.get("attention_k_eq_v"):
        return n_head_kv
    return _global(config, "num_global_key_value_heads", "num_key_value_heads", n_head_kv)


def global_head_dim(config: Config) -> int:
    """Head size of global layers."""
    return _global(config, "global_head_dim", "head_dim", 512)


def first_shared(config: Config) -> int:
    """The first layer without keys and values of its own."""
    return int(config["num_hidden_layers"]) - int(config.get("num_kv_shared_layers") or 0)


def is_wide(config: Config, layer: int) -> bool:
    """Whether a layer's feed-forward has twice the width."""
    return bool(config.get("use_double_wide_mlp")) and layer >= first_shared(config)


def of_layer(config: Config, layer: int) -> Config:
    """The config of one layer."""
    layer_config = dict(config)
    if not is_sliding(config, layer):
        layer_config |= {"head_dim": global_head_dim(config), "num_key_value_heads": global_heads(config)}
    if is_wide(config, layer):
        layer_config["intermediate_size"] = 2 * int(config["intermediate_size"])
    return layer_config


def shared_from(config: Config, layer: int) -> int | None:
    """The layer whose keys and values `layer` uses; None if it computes its own."""
    first = first_shared(config)
    if layer < first:
        return None
    return max(earlier for earlier in range(first) if is_sliding(config, earlier) == is_sliding(config, layer))
