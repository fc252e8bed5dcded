"""Granite 4: Granite's multipliers, Mamba 2 in place of attention in most layers, dense or with experts.

Shape of the GGUF: llama.cpp's `granitehybrid` architecture (src/models/granite-hybrid.cpp). Its attention has no rotary
positions. A model without Mamba layers is of the `granite` or `granitemoe` architecture, with rotary positions.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.family import Computed, Family, Key, Rule, Take
from quantkit.families.base.fused import rows
from quantkit.families.base.hyperparameters import Hyperparameters, optional_size, size
from quantkit.families.base.layer_kinds import layer_kinds
from quantkit.families.base.mamba import mamba2_dimensions, mamba2_keys, mamba2_rules, no_time_limits
from quantkit.families.base.refusals import only
from quantkit.families.base.traits import Traits
from quantkit.families.granite import CONFIG, check_granite, granite_keys, without_plain_width
from quantkit.families.granitemoe import EXPERTS, RENAME
from quantkit.families.granitemoe import FORWARD as MOE_FORWARD
from quantkit.families.llama import ATTENTION, ENDS, llama3_rope_factors
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import FeedForward
from quantkit.forward.recurrent_mixers import Mamba2
from quantkit.forward.settings import size_of

_NAME = "Granite 4"
_CONTEXT_WITHOUT_ROPE = 1 << 20
_MAMBA, _ATTENTION = ("mamba", "linear_attention"), ("attention", "full_attention")


def kinds(config: Mapping[str, Any]) -> list[bool]:
    """By layer: whether it has Mamba 2 in place of attention.

    Raises:
        CheckpointError: `layer_types` is not a list of one entry per layer.
        UnsupportedError: a layer is not Mamba or attention.
    """
    n_layer = size(config, "num_hidden_layers")
    name = "layer_types" if config.get("layer_types") is not None else "layers_block_type"
    stated = layer_kinds(config, n_layer, _MAMBA + _ATTENTION, name=name, shown="mamba and attention")
    if stated is None:
        return [True] * n_layer
    return [kind in _MAMBA for kind in stated]


def _layers_with(mamba: bool) -> Callable[[Hyperparameters], list[int]]:
    return lambda sizes: [layer for layer, has in enumerate(kinds(sizes.config)) if has == mamba]


def _is_hybrid(sizes: Hyperparameters) -> bool:
    return any(kinds(sizes.config))


def _shared(sizes: Hyperparameters) -> int:
    return int(sizes.config.get("shared_intermediate_size") or 0)


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    shared = _shared(sizes)
    return {
        "gate_up": 2 * sizes.ffn,
        "shared_ffn": shared,
        "shared_gate_up": 2 * shared,
        **mamba_dimensions(sizes.config),
    }


def mamba_dimensions(config: Mapping[str, Any]) -> dict[str, int]:
    return mamba2_dimensions(
        size(config, "hidden_size"),
        size(config, "mamba_expand") * size(config, "hidden_size"),
        size(config, "mamba_n_heads"),
        size(config, "mamba_n_groups"),
        size(config, "mamba_d_state"),
        size(config, "mamba_d_conv"),
    )


def mamba_channels(sizes: Hyperparameters) -> int:
    return mamba_dimensions(sizes.config)["ssm_channels"]


def _half(half: int) -> Callable[[Hyperparameters], Take]:
    return lambda sizes: rows(half * _shared(sizes), _shared(sizes))


def _has_experts(sizes: Hyperparameters) -> bool:
    return sizes.n_expert > 0


def _in_a_mixture(rule: Rule) -> Callable[[Hyperparameters], bool]:
    return lambda sizes: _has_experts(sizes) and (rule.when is None or rule.when(sizes))


def _is_dense(sizes: Hyperparameters) -> bool:
    return sizes.n_expert == 0


_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_ATTENDING = tuple(
    replace(rule, layers=_layers_with(mamba=False)) if ".self_attn." in rule.source else rule for rule in ATTENTION
)
_MIXTURE = tuple(replace(rule, when=_in_a_mixture(rule)) for rule in EXPERTS)
_DENSE = (
    *(
        Rule(
            f"{_AT}.shared_mlp.input_linear.weight",
            f"{_TO}.ffn_{name}.weight",
            ("shared_gate_up", "hidden"),
            take=_half(half),
            when=_is_dense,
        )
        for half, name in enumerate(("gate", "up"))
    ),
    Rule(
        f"{_AT}.shared_mlp.output_linear.weight",
        f"{_TO}.ffn_down.weight",
        ("hidden", "shared_ffn"),
        when=_is_dense,
    ),
)


def _arch(sizes: Hyperparameters) -> str:
    if _is_hybrid(sizes):
        return "granitehybrid"
    return "granitemoe" if sizes.n_expert_used else "granite"


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    config, hybrid = sizes.config, _is_hybrid(sizes)
    heads = [0 if mamba else sizes.n_head_kv for mamba in kinds(config)]
    by_layer = {
        f"{arch}.attention.head_count_kv": Key(f"{arch}.attention.head_count_kv", "i32s", heads),
    }
    if hybrid:
        by_layer[f"{arch}.context_length"] = Key(f"{arch}.context_length", "u32", _CONTEXT_WITHOUT_ROPE)
    keys = [by_layer.get(key.name, key) for key in granite_keys(arch, sizes)]
    if _is_dense(sizes):
        after = [key.name for key in keys].index(f"{arch}.attention.layer_norm_rms_epsilon") + 1
        keys[after:after] = [Key(f"{arch}.{name}", "u32", 0) for name in ("expert_count", "expert_used_count")]
    if _shared(sizes):
        keys.append(Key(f"{arch}.expert_shared_feed_forward_length", "u32", _shared(sizes)))
    return [
        *keys,
        *mamba2_keys(arch, mamba_dimensions(config), size(config, "mamba_d_state")),
        Key(f"{arch}.rope.scaling.finetuned", "bool", not hybrid),
    ]


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    hybrid = any(kinds(config))
    if hybrid:
        only(config, "position_embedding_type", "nope", family=_NAME)
        only(config, "mamba_expand", 2, family=_NAME)
        only(config, "mamba_conv_bias", True, family=_NAME)
        only(config, "mamba_proj_bias", False, family=_NAME)
        no_time_limits(config, _NAME)
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        only(rope, "rope_type", "default", family=f"{_NAME} with Mamba layers")
        if all(kinds(config)):
            raise UnsupportedError(
                f"config.json: every layer is a Mamba layer, but llama.cpp runs {_NAME} only with an attention layer;"
                " state the kinds of the layers in layer_types"
            )
    elif config.get("position_embedding_type") != "rope":
        raise UnsupportedError(
            f"config.json: position_embedding_type is {config.get('position_embedding_type')!r}, but llama.cpp runs"
            f" {_NAME} without Mamba layers only with rope; a GGUF cannot express this setting"
        )
    check_granite({**config, "position_embedding_type": "rope"}, _NAME)
    heads, width = size(config, "mamba_n_heads"), config.get("mamba_d_head")
    dims = mamba_dimensions(config)
    if width not in (None, "auto") and heads * size(config, "mamba_d_head") != dims["ssm_inner"]:
        raise CheckpointError(
            f"config.json: mamba_n_heads {heads} times mamba_d_head {width} is not mamba_expand times hidden_size"
            f" ({dims['ssm_inner']}); correct one of them"
        )
    experts, used = optional_size(config, "num_local_experts"), optional_size(config, "num_experts_per_tok")
    if experts is None:
        # the width that llama.cpp reads for the dense feed-forward
        config["intermediate_size"] = size(config, "shared_intermediate_size")
        config["num_experts_per_tok"] = 0
    elif used is None or used > experts:
        raise CheckpointError(f"config.json: num_experts_per_tok {used} must be from 1 to num_local_experts {experts}")
    if config.get("shared_intermediate_size"):
        size(config, "shared_intermediate_size")
    return without_plain_width(config)


def _has_mamba(config: Config, layer: int) -> bool:
    stated = given(config, "layer_types", "layers_block_type")
    return stated is None or stated[layer] in _MAMBA


def _head_width(config: Config) -> int:
    """`mamba_d_head`, which may be "auto"."""
    return int(config["mamba_expand"]) * int(config["hidden_size"]) // int(config["mamba_n_heads"])


_EXPERTS = MOE_FORWARD.experts
assert _EXPERTS is not None
FORWARD = replace(
    MOE_FORWARD,
    attention=replace(
        MOE_FORWARD.attention,
        rope=lambda config, _: config if config.get("position_embedding_type") == "rope" else None,
    ),
    mamba2=Mamba2(layers=_has_mamba, head_width=_head_width),
    not_mlx="mlx-lm splits the weights of Granite hybrids as it loads them",
    feed=FeedForward(
        at="shared_mlp.", fused="input_linear", down="output_linear", inner=size_of("shared_intermediate_size")
    ),
    experts=replace(_EXPERTS, layers=lambda config, _: bool(config.get("num_local_experts"))),
)

FAMILY = Family(
    name="Granite 4",
    models="Granite 4.0 350M to H-Small, with and without Mamba layers",
    architectures=("GraniteMoeHybridForCausalLM",),
    gguf_arch="granitehybrid",
    arch_of=_arch,
    rules=_ATTENDING
    + mamba2_rules(f"{_AT}.mamba.", mamba_channels, _layers_with(mamba=True))
    + _MIXTURE
    + _DENSE
    + ENDS,
    keys=_keys,
    computed=(Computed("rope_freqs.weight", lambda sizes: None if _is_hybrid(sizes) else llama3_rope_factors(sizes)),),
    # transformers' GraniteMoeHybridConfig
    defaults={
        "granitemoehybrid": {
            **CONFIG,
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_experts_per_tok": 2,
            "num_local_experts": 8,
            "shared_intermediate_size": 1024,
            "mamba_n_heads": 128,
            "mamba_n_groups": 1,
            "mamba_d_state": 256,
            "mamba_d_conv": 4,
            "mamba_expand": 2,
            "mamba_conv_bias": True,
            "mamba_proj_bias": False,
        }
    },
    prepare=_prepare,
    rename=RENAME,
    dimensions=_dimensions,
    no_effect=("mamba_chunk_size",),
    forward=FORWARD,
    traits=Traits(mamba2=True, positions="stated"),
)
