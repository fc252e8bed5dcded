"""Falcon-H1: attention and Mamba 2 side by side in every layer, with muP's multipliers.

Shape of the GGUF: llama.cpp's `falcon-h1` architecture (src/models/falcon-h1.cpp). The multipliers are part of the
weights there. Both parts read the same norm. The norm of the feed-forward has no `.weight` in its name.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.family import Factor, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.keys import head_dim_keys
from quantkit.families.base.mamba import mamba2_dimensions, mamba2_rules, no_time_limits
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.traits import Traits
from quantkit.forward.config_keys import Config
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.recurrent_mixers import Mamba2
from quantkit.forward.settings import number_of

_NAME = "Falcon-H1"
_Sized = Callable[[Hyperparameters], tuple[Factor, ...]]


def _inner(config: Mapping[str, Any]) -> int:
    stated = optional_size(config, "mamba_d_ssm")
    return size(config, "mamba_expand") * size(config, "hidden_size") if stated is None else stated


def _mamba_dimensions(config: Mapping[str, Any]) -> dict[str, int]:
    return mamba2_dimensions(
        size(config, "hidden_size"),
        _inner(config),
        size(config, "mamba_n_heads"),
        size(config, "mamba_n_groups"),
        size(config, "mamba_d_state"),
        size(config, "mamba_d_conv"),
    )


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    return _mamba_dimensions(sizes.config)


def _channels(sizes: Hyperparameters) -> int:
    return _dimensions(sizes)["ssm_channels"]


def _numbers(config: Config, *names: str) -> tuple[float, ...]:
    return tuple(float(config.get(name, 1.0)) for name in names)


def _times(*names: str) -> _Sized:
    """The numbers under these keys."""
    return lambda sizes: _numbers(sizes.config, *names)


def _of_list(name: str, index: int) -> _Sized:
    return lambda sizes: (float(sizes.config[name][index]),)


def _of_projection(sizes: Hyperparameters) -> tuple[Factor, ...]:
    """The factor of the input, and those of gate, values, keys, queries and time steps."""
    dims, keys = _dimensions(sizes), size(sizes.config, "mamba_n_groups") * size(sizes.config, "mamba_d_state")
    counts = (dims["ssm_inner"], dims["ssm_inner"], keys, keys, dims["ssm_heads"])
    by_row = np.repeat(np.array(sizes.config["ssm_multipliers"], np.float32), counts)
    return (float(sizes.config["ssm_in_multiplier"]), by_row)


_AT, _TO = "model.layers.{layer}", "blk.{layer}"


def _scaled_mamba(rule: Rule) -> Rule:
    if rule.source.endswith("in_proj.weight"):
        return replace(rule, factors=_of_projection)
    if rule.source.endswith("out_proj.weight"):
        return replace(rule, factors=_times("ssm_out_multiplier"))
    if rule.source.endswith("norm.weight"):
        return replace(rule, when=lambda sizes: bool(sizes.config.get("mamba_rms_norm")))
    return rule


def _linear(source: str, target: str, *shape: str, factors: _Sized | None = None) -> Rule:
    return Rule(f"{_AT}.{source}.weight", f"{_TO}.{target}.weight", shape, factors=factors)


_LAYER = (
    Rule(f"{_AT}.input_layernorm.weight", f"{_TO}.attn_norm.weight", ("hidden",)),
    _linear("self_attn.q_proj", "attn_q", "q", "hidden", factors=_times("attention_in_multiplier")),
    _linear("self_attn.k_proj", "attn_k", "kv", "hidden", factors=_times("key_multiplier", "attention_in_multiplier")),
    _linear("self_attn.v_proj", "attn_v", "kv", "hidden", factors=_times("attention_in_multiplier")),
    _linear("self_attn.o_proj", "attn_output", "hidden", "q", factors=_times("attention_out_multiplier")),
    *(_scaled_mamba(rule) for rule in mamba2_rules(f"{_AT}.mamba.", _channels)),
    Rule(f"{_AT}.pre_ff_layernorm.weight", f"{_TO}.ffn_norm", ("hidden",)),
    _linear("feed_forward.gate_proj", "ffn_gate", "ffn", "hidden", factors=_of_list("mlp_multipliers", 0)),
    _linear("feed_forward.up_proj", "ffn_up", "ffn", "hidden"),
    _linear("feed_forward.down_proj", "ffn_down", "hidden", "ffn", factors=_of_list("mlp_multipliers", 1)),
)
_ENDS = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("vocab", "hidden"), factors=_times("embedding_multiplier")),
    Rule("model.final_layernorm.weight", "output_norm.weight", ("hidden",)),
    Rule(
        "lm_head.weight",
        "output.weight",
        ("vocab", "hidden"),
        required=False,
        tied_to_embedding=True,
        factors=_times("lm_head_multiplier"),
    ),
)


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    config, dims = sizes.config, _dimensions(sizes)
    return [
        Key(f"{arch}.context_length", "u32", sizes.context),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.attention.head_count", "u32", sizes.n_head),
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.ssm.conv_kernel", "u32", dims["ssm_kernel"]),
        Key(f"{arch}.ssm.inner_size", "u32", dims["ssm_inner"]),
        Key(f"{arch}.ssm.state_size", "u32", size(config, "mamba_d_state")),
        Key(f"{arch}.ssm.time_step_rank", "u32", dims["ssm_heads"]),
        Key(f"{arch}.ssm.group_count", "u32", dims["ssm_groups"]),
        Key(f"{arch}.attention.layer_norm_rms_epsilon", "f32", sizes.norm_eps),
        Key(f"{arch}.vocab_size", "u32", sizes.vocab),
        Key(f"{arch}.attention.head_count_kv", "u32", sizes.n_head_kv),
        *head_dim_keys(arch, sizes),
        Key(f"{arch}.rope.freq_base", "f32", sizes.rope["rope_theta"]),
    ]


_FACTORS = (
    "lm_head_multiplier",
    "embedding_multiplier",
    "key_multiplier",
    "attention_in_multiplier",
    "attention_out_multiplier",
    "ssm_in_multiplier",
    "ssm_out_multiplier",
)
_LISTS = {"mlp_multipliers": 2, "ssm_multipliers": 5}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family=_NAME)
    for name in ("attention_bias", "mlp_bias", "projectors_bias", "mamba_proj_bias"):
        only(config, name, False, family=_NAME)
    only(config, "mamba_conv_bias", True, family=_NAME)
    if config.get("mamba_rms_norm"):
        only(config, "mamba_norm_before_gate", False, family=f"{_NAME} with mamba_rms_norm")
    no_time_limits(config, _NAME)
    for name in _FACTORS:
        value = number(config, name)
        config[name] = 1.0 if value is None else value
    for name, count in _LISTS.items():
        if config.get(name) is None:
            config[name] = [1.0] * count
        values = config[name]
        if not isinstance(values, list) or len(values) != count:
            raise CheckpointError(f"config.json: {name} must be a list of {count} numbers, not {values!r}")
        for value in values:
            number({name: value}, name)
    if config.get("tie_word_embeddings") and config["embedding_multiplier"] != config["lm_head_multiplier"]:
        raise UnsupportedError(
            f"config.json: tie_word_embeddings is true and embedding_multiplier {config['embedding_multiplier']:g} is"
            f" not lm_head_multiplier {config['lm_head_multiplier']:g}, but a GGUF of {_NAME} has one tensor for both"
        )
    dims, width = _mamba_dimensions(config), config.get("mamba_d_head")
    if width not in (None, "auto") and dims["ssm_heads"] * size(config, "mamba_d_head") != dims["ssm_inner"]:
        raise CheckpointError(
            f"config.json: mamba_n_heads {dims['ssm_heads']} times mamba_d_head {width} is not the width of Mamba"
            f" ({dims['ssm_inner']}); correct one of them"
        )
    if optional_size(config, "head_dim") is None:
        config["head_dim"] = size(config, "hidden_size") // size(config, "num_attention_heads")
    return config | {"mamba_d_ssm": dims["ssm_inner"], "mamba_d_head": dims["ssm_inner"] // dims["ssm_heads"]}


def _attention_factors(config: Config) -> tuple[float, float, float, float]:
    reads, key, out = _numbers(config, "attention_in_multiplier", "key_multiplier", "attention_out_multiplier")
    return reads, reads * key, reads, out


def _list_of(config: Config, name: str) -> list[float]:
    return [float(value) for value in config.get(name) or [1.0] * _LISTS[name]]


def _mamba_factors(config: Config) -> tuple[float, float, float, float, float, float]:
    reads, out = _numbers(config, "ssm_in_multiplier", "ssm_out_multiplier")
    gate, values, keys, queries, steps = _list_of(config, "ssm_multipliers")
    return reads * gate, reads * values, reads * keys, reads * queries, reads * steps, out


def _feed_factors(config: Config) -> tuple[float, float]:
    gate, down = _list_of(config, "mlp_multipliers")
    return gate, down


FORWARD = Architecture(
    embedding_scale=number_of("embedding_multiplier"),
    logit_scale=number_of("lm_head_multiplier"),
    attention=Attention(multipliers=_attention_factors),
    mamba2=Mamba2(
        layers=lambda _config, _layer: True,
        beside=True,
        has_norm=lambda config: bool(config.get("mamba_rms_norm")),
        head_width=lambda config: _inner(config) // int(config["mamba_n_heads"]),
        multipliers=_mamba_factors,
    ),
    feed=FeedForward(at="feed_forward.", multipliers=_feed_factors),
    feed_norm="pre_ff_layernorm",
    last_norm="final_layernorm",
    not_mlx="mlx-lm multiplies the weights of Falcon-H1 as it loads them",
)

FAMILY = Family(
    name=_NAME,
    models="Falcon-H1 0.5B to 34B",
    architectures=("FalconH1ForCausalLM",),
    gguf_arch="falcon-h1",
    rules=_LAYER + _ENDS,
    keys=_keys,
    # transformers' FalconH1Config
    defaults={
        "falcon_h1": {
            "vocab_size": 128000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 8192,
            "mamba_d_ssm": 1024,
            "mamba_n_heads": 128,
            "mamba_n_groups": 1,
            "mamba_d_state": 256,
            "mamba_d_conv": 4,
            "mamba_expand": 2,
            "mamba_conv_bias": True,
            "mamba_norm_before_gate": True,
            "mamba_rms_norm": False,
            "tie_word_embeddings": False,
        }
    },
    prepare=_prepare,
    dimensions=_dimensions,
    rope_kinds=("default",),
    no_effect=("mamba_chunk_size", "num_logits_to_keep"),
    forward=FORWARD,
    traits=Traits(mamba2=True),
)
