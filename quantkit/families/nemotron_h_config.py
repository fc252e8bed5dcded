"""Nemotron-H's config.json: the kind of each layer; what llama.cpp does not have is refused."""

from collections.abc import Mapping
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.hyperparameters import number, optional_size, size
from quantkit.families.base.mamba import no_time_limits
from quantkit.families.base.refusals import SILU, only

NAME = "Nemotron-H"
MAMBA, ATTENTION, MLP, MOE = "linear_attention", "full_attention", "mlp", "moe"
_LETTERS = {"M": MAMBA, "*": ATTENTION, "-": MLP, "E": MOE}
_NAMES = {"mamba": MAMBA, "attention": ATTENTION, **{kind: kind for kind in _LETTERS.values()}}
_OF_EXPERTS = ("n_routed_experts", "num_experts_per_tok", "n_group", "topk_group", "n_shared_experts")

# transformers' NemotronHConfig
DEFAULTS: dict[str, dict[str, Any]] = {
    "nemotron_h": {
        "vocab_size": 131072,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
        "intermediate_size": 21504,
        "layer_norm_epsilon": 1e-5,
        "ssm_state_size": 128,
        "mamba_num_heads": 128,
        "mamba_head_dim": 64,
        "n_groups": 8,
        "conv_kernel": 4,
        "use_conv_bias": True,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "moe_intermediate_size": 7688,
        "moe_shared_expert_intermediate_size": 7688,
        "num_experts_per_tok": 2,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
    }
}


def kinds(config: Mapping[str, Any]) -> list[str]:
    """By layer: `linear_attention` (Mamba 2), `full_attention`, `mlp` or `moe`.

    Raises:
        CheckpointError: config.json has no pattern of layers, or one of another length.
        UnsupportedError: a layer is of another kind.
    """
    name = next(
        (name for name in ("hybrid_override_pattern", "layers_block_type", "layer_types") if config.get(name)), ""
    )
    stated = config.get(name)
    if not isinstance(stated, str | list):
        raise CheckpointError("config.json has no hybrid_override_pattern; add it, it states the kind of each layer")
    known = _LETTERS if isinstance(stated, str) else _NAMES
    for kind in stated:
        if kind not in known:
            raise UnsupportedError(
                f"config.json: {name} contains {kind!r}, but llama.cpp runs {NAME} only with {', '.join(known)}"
            )
    n_layer = optional_size(config, "num_hidden_layers")
    if n_layer is not None and n_layer != len(stated):
        raise CheckpointError(
            f"config.json: {name} states {len(stated)} layers, but num_hidden_layers is {n_layer}; correct one of them"
        )
    return [known[kind] for kind in stated]


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph does not have; state the kinds of layers under one name.

    Raises:
        CheckpointError: a setting is missing or contradicts another.
        UnsupportedError: a setting that llama.cpp does not run.
    """
    layers = kinds(config)
    config["layers_block_type"], config["num_hidden_layers"] = layers, len(layers)
    config.pop("hybrid_override_pattern", None)
    only(config, "mlp_hidden_act", "relu2", family=NAME)
    only(config, "mamba_hidden_act", *SILU, family=NAME)
    for name in ("attention_bias", "mamba_proj_bias", "use_bias"):
        only(config, name, False, family=NAME)
    only(config, "use_conv_bias", True, family=NAME)
    no_time_limits(config, NAME)
    if number(config, "rms_norm_eps") not in (None, number(config, "layer_norm_epsilon")):
        raise UnsupportedError(
            f"config.json: rms_norm_eps {config['rms_norm_eps']:g} is not layer_norm_epsilon"
            f" {config['layer_norm_epsilon']:g}, but a GGUF of {NAME} has one of them; correct one"
        )
    if ATTENTION not in layers or MAMBA not in layers:
        raise UnsupportedError(f"config.json: llama.cpp runs {NAME} only with both Mamba and attention layers")
    if MOE not in layers:
        for name in _OF_EXPERTS:
            config.pop(name, None)
    elif MLP in layers:
        raise UnsupportedError(
            f"config.json: some layers are {MLP} and some {MOE}, but llama.cpp runs {NAME} only with one of these kinds"
        )
    else:
        only(config, "mlp_bias", False, family=f"{NAME} with experts")
        experts, used = size(config, "n_routed_experts"), size(config, "num_experts_per_tok")
        if used > experts:
            raise CheckpointError(f"config.json: num_experts_per_tok {used} is more than n_routed_experts {experts}")
        size(config, "n_shared_experts")
    if optional_size(config, "head_dim") is None:
        config["head_dim"] = size(config, "attention_head_dim")
    return config
