"""Kimi Linear's config.json, as published or as transformers writes it; what llama.cpp does not have is refused."""

from collections.abc import Mapping
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.hyperparameters import size
from quantkit.families.base.layer_kinds import layer_kinds
from quantkit.families.base.refusals import SILU, only
from quantkit.forward.config_keys import Config

NAME = "Kimi Linear"
# transformers' class knows these settings under either name; the second is that of published files
_ALIASES = {
    "max_position_embeddings": "model_max_length",
    "n_group": "num_expert_group",
    "n_shared_experts": "num_shared_experts",
    "norm_topk_prob": "moe_renormalize",
    "num_experts_per_tok": "num_experts_per_token",
    "num_local_experts": "num_experts",
}
_NESTED = {
    "head_dim": "linear_head_dim",
    "num_heads": "linear_num_heads",
    "short_conv_kernel_size": "linear_conv_kernel_dim",
}


# transformers' KimiLinearConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "kimi_linear": {
        "first_k_dense_replace": 1,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "kv_lora_rank": 512,
        "model_max_length": 1048576,
        "moe_intermediate_size": 1024,
        "moe_renormalize": True,
        "moe_router_activation_func": "sigmoid",
        "num_attention_heads": 32,
        "num_expert_group": 1,
        "num_experts": 256,
        "num_experts_per_token": 8,
        "num_hidden_layers": 27,
        "num_shared_experts": 1,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-5,
        "routed_scaling_factor": 2.446,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "v_head_dim": 128,
        "vocab_size": 163840,
    }
}


def has_delta(config: Config, layer: int) -> bool:
    """Whether a layer has Kimi Delta Attention; config.json counts layers from 1."""
    return layer + 1 not in config["linear_attn_config"]["full_attn_layers"]


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph does not have; state the settings under their published names.

    Raises:
        CheckpointError: a layer is of no kind or of two, or a size is missing.
        UnsupportedError: a setting that llama.cpp does not run.
    """
    for alias, name in _ALIASES.items():
        if (value := config.pop(alias, None)) is not None:
            config[name] = value
    n_layer = size(config, "num_hidden_layers")
    kinds = layer_kinds(config, n_layer, ("linear_attention", "full_attention"))
    config["linear_attn_config"] = _completed(config, kinds)
    if config.get("q_lora_rank") is not None:
        raise UnsupportedError(
            f"config.json: q_lora_rank is {config['q_lora_rank']!r}, but llama.cpp runs {NAME} only without"
            " compressed queries; a GGUF cannot express this setting"
        )
    _dense_first(config, n_layer)
    prepare_kimi(config, NAME)
    only(config, "hidden_act", *SILU, family=NAME)
    only(config, "moe_renormalize", True, family=NAME)
    if config.get("head_dim") is None:
        config["head_dim"] = size(config, "qk_rope_head_dim")
    return config


def _completed(config: Mapping[str, Any], kinds: list[str] | None) -> dict[str, Any]:
    """`linear_attn_config`, from transformers' own settings where the file lacks it."""
    nested = config.get("linear_attn_config")
    if nested is not None:
        return checked_layers(config)
    kinds = kinds or [
        "full_attention" if layer and layer % 4 == 0 else "linear_attention"
        for layer in range(size(config, "num_hidden_layers"))
    ]
    return {
        **{
            name: config.get(alias, default)
            for (name, alias), default in zip(_NESTED.items(), (128, 32, 4), strict=True)
        },
        "full_attn_layers": [number for number, kind in enumerate(kinds, 1) if kind == "full_attention"],
        "kda_layers": [number for number, kind in enumerate(kinds, 1) if kind == "linear_attention"],
    }


def checked_layers(config: Mapping[str, Any]) -> dict[str, Any]:
    """`linear_attn_config`, whose two lists must have every layer once.

    Raises:
        CheckpointError: it is missing, or a layer is in none of its lists or in both.
    """
    nested = config.get("linear_attn_config")
    if not isinstance(nested, Mapping):
        raise CheckpointError(f"config.json: linear_attn_config must be an object, not {nested!r}; correct it")
    lists = [nested.get(name) for name in ("full_attn_layers", "kda_layers")]
    numbers = [number for numbers in lists if isinstance(numbers, list) for number in numbers]
    n_layer = size(config, "num_hidden_layers")
    if any(type(number) is not int for number in numbers) or sorted(numbers) != list(range(1, n_layer + 1)):
        raise CheckpointError(
            f"config.json: full_attn_layers and kda_layers must have each of the layers 1 to {n_layer} once, not"
            f" {lists[0]!r} and {lists[1]!r}; correct them"
        )
    return dict(nested)


def _dense_first(config: dict[str, Any], n_layer: int) -> None:
    """State how many layers at the start have no experts, where a list has it."""
    kinds = layer_kinds(config, n_layer, ("dense", "sparse"), name="mlp_layer_types")
    if kinds is None:
        return
    config["first_k_dense_replace"] = dense = kinds.count("dense")
    if kinds != ["dense"] * dense + ["sparse"] * (n_layer - dense):
        raise UnsupportedError(
            f"config.json: mlp_layer_types has a dense layer after a sparse one, but llama.cpp runs {NAME} only with"
            " dense layers first; a GGUF cannot express this setting"
        )


def prepare_kimi(config: dict[str, Any], family: str) -> None:
    """Refuse settings that none of llama.cpp's graphs of Kimi's models has."""
    nested, heads = config["linear_attn_config"], size(config, "num_attention_heads")
    only(nested, "num_heads", heads, family=family)
    for name in ("head_dim", "short_conv_kernel_size"):
        size(nested, name)
    only(config, "num_key_value_heads", heads, family=family)
    only(config, "attention_bias", False, family=family)
    only(config, "mla_use_nope", True, family=family)
    only(config, "moe_layer_freq", 1, family=family)
    only(config, "moe_router_activation_func", "sigmoid", family=family)
    only(config, "num_expert_group", 1, family=family)
    only(config, "num_nextn_predict_layers", 0, family=family)
    only(config, "tie_word_embeddings", False, family=family)
    for name in ("moe_intermediate_size", "num_experts", "num_experts_per_token", "num_shared_experts"):
        size(config, name)
    experts, used = size(config, "num_experts"), size(config, "num_experts_per_token")
    if used > experts:
        raise CheckpointError(
            f"config.json: num_experts_per_token {used} is more than num_experts {experts}; correct it"
        )
