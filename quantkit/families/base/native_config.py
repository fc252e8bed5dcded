"""config.json of the native architecture that computes the same as a checkpoint of remote code."""

from collections.abc import Mapping
from typing import Any

# Settings with the same meaning in published remote code and in transformers.
_SHARED = (
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "rope_theta",
    "torch_dtype",
    "use_cache",
    "vocab_size",
)


def shared(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the same meaning in both that config.json states."""
    return {key: config[key] for key in _SHARED if config.get(key) is not None}


def as_llama(config: Mapping[str, Any], **stated: Any) -> dict[str, Any]:
    """The config.json of a LlamaForCausalLM of the same sizes; `stated`: settings with other names in the family."""
    native = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": config["num_attention_heads"],
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        **shared(config),
        **stated,
    }
    scaling = config.get("rope_scaling")
    if isinstance(scaling, Mapping):
        kind = scaling.get("rope_type", scaling.get("type"))
        native["rope_scaling"] = {**{key: value for key, value in scaling.items() if key != "type"}, "rope_type": kind}
    return native
