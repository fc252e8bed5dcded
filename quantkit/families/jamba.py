"""Jamba: Mamba in most layers and attention in some, dense and with experts in turn.

Shape of the GGUF: llama.cpp's `jamba` architecture (src/models/jamba.cpp). Attention has no positions. Time steps, keys
and queries of Mamba have norms.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.experts import expert_dimensions, expert_rules
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.mamba import mamba_dimensions, mamba_rules, time_step_rank
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.traits import Traits
from quantkit.forward.config_keys import Config
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.parts import Form
from quantkit.forward.recurrent_mixers import Mamba
from quantkit.tokenizer.roles import TokenRoles

_NAME = "Jamba"


def _in_turn(config: Mapping[str, Any], part: str, layer: int) -> bool:
    """Whether a layer has `part` ("attn" or "expert"): one layer of a period has."""
    return bool(layer % int(config[f"{part}_layer_period"]) == int(config[f"{part}_layer_offset"]))


def _has_mamba(config: Config, layer: int) -> bool:
    return not _in_turn(config, "attn", layer)


def _has_experts(config: Config, layer: int) -> bool:
    return int(config["num_experts"]) > 1 and _in_turn(config, "expert", layer)


def _layers(has: Callable[[Config, int], bool], expected: bool = True) -> Callable[[Hyperparameters], Iterable[int]]:
    return lambda sizes: [layer for layer in range(sizes.n_layer) if has(sizes.config, layer) == expected]


def _inner(config: Config) -> int:
    return 2 * size(config, "hidden_size")


def _rank(config: Config) -> int:
    return time_step_rank(config, "mamba_dt_rank")


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    config = sizes.config
    mamba = mamba_dimensions(_inner(config), size(config, "mamba_d_state"), _rank(config), size(config, "mamba_d_conv"))
    return {**mamba, **expert_dimensions(sizes.ffn)}


_AT, _TO = "model.layers.{layer}", "blk.{layer}"


def _linear(source: str, target: str, *shape: str, layers: Callable[[Hyperparameters], Iterable[int]]) -> Rule:
    return Rule(f"{_AT}.{source}.weight", f"{_TO}.{target}.weight", shape, layers=layers)


_ATTENTION, _DENSE = _layers(_has_mamba, False), _layers(_has_experts, False)
_RULES = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule(f"{_AT}.input_layernorm.weight", f"{_TO}.attn_norm.weight", ("hidden",)),
    _linear("self_attn.q_proj", "attn_q", "q", "hidden", layers=_ATTENTION),
    _linear("self_attn.k_proj", "attn_k", "kv", "hidden", layers=_ATTENTION),
    _linear("self_attn.v_proj", "attn_v", "kv", "hidden", layers=_ATTENTION),
    _linear("self_attn.o_proj", "attn_output", "hidden", "q", layers=_ATTENTION),
    *mamba_rules(f"{_AT}.mamba.", lambda sizes: _inner(sizes.config), _layers(_has_mamba), norms=True),
    Rule(f"{_AT}.pre_ff_layernorm.weight", f"{_TO}.ffn_norm.weight", ("hidden",)),
    _linear("feed_forward.gate_proj", "ffn_gate", "ffn", "hidden", layers=_DENSE),
    _linear("feed_forward.up_proj", "ffn_up", "ffn", "hidden", layers=_DENSE),
    _linear("feed_forward.down_proj", "ffn_down", "hidden", "ffn", layers=_DENSE),
    _linear("feed_forward.router", "ffn_gate_inp", "n_expert", "hidden", layers=_layers(_has_experts)),
    *expert_rules(f"{_AT}.feed_forward.experts", layers=_layers(_has_experts), width=lambda sizes: sizes.ffn),
    Rule("model.final_layernorm.weight", "output_norm.weight", ("hidden",)),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), required=False, tied_to_embedding=True),
)


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    config, dims = sizes.config, _dimensions(sizes)
    heads = [0 if _has_mamba(config, layer) else sizes.n_head_kv for layer in range(sizes.n_layer)]
    return [
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.context_length", "u32", sizes.context),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.attention.head_count", "u32", sizes.n_head),
        Key(f"{arch}.attention.head_count_kv", "i32s", heads),
        Key(f"{arch}.ssm.conv_kernel", "u32", dims["ssm_kernel"]),
        Key(f"{arch}.ssm.inner_size", "u32", dims["ssm_inner"]),
        Key(f"{arch}.ssm.state_size", "u32", dims["ssm_state"]),
        Key(f"{arch}.ssm.time_step_rank", "u32", dims["ssm_rank"]),
        Key(f"{arch}.attention.layer_norm_rms_epsilon", "f32", sizes.norm_eps),
        Key(f"{arch}.expert_count", "u32", size(config, "num_experts")),
        Key(f"{arch}.expert_used_count", "u32", size(config, "num_experts_per_tok")),
    ]


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family=_NAME)
    only(config, "mamba_expand", 2, family=_NAME)
    only(config, "mamba_conv_bias", True, family=_NAME)
    only(config, "mamba_proj_bias", False, family=_NAME)
    only(config, "mamba_inner_layernorms", True, family=_NAME)
    for part in ("attn", "expert"):
        period, offset = size(config, f"{part}_layer_period"), int(number(config, f"{part}_layer_offset") or 0)
        if not 0 <= offset < period:
            raise CheckpointError(
                f"config.json: {part}_layer_offset {offset} must be less than {part}_layer_period {period}"
            )
    layers = range(size(config, "num_hidden_layers"))
    if len({_has_mamba(config, layer) for layer in layers}) < 2:
        raise UnsupportedError(f"config.json: llama.cpp runs {_NAME} only with both Mamba and attention layers")
    experts, used = size(config, "num_experts"), size(config, "num_experts_per_tok")
    if experts > 1 and used > experts:
        raise CheckpointError(f"config.json: num_experts_per_tok {used} is more than num_experts {experts}")
    return config | {"num_experts_per_tok": min(used, experts)}


_EXPERT = FeedForward(at="feed_forward.experts.{}.")
FORWARD = Architecture(
    feed_norm="pre_ff_layernorm",
    attention=Attention(rope=lambda _config, _layer: None),
    mamba=Mamba(
        layers=_has_mamba,
        at="mamba.",
        inner=_inner,
        state=lambda config: int(config["mamba_d_state"]),
        rank=_rank,
        norms=("dt_layernorm", "b_layernorm", "c_layernorm"),
    ),
    feed=FeedForward(at="feed_forward."),
    experts=Experts(
        router="feed_forward.router",
        expert=_EXPERT,
        stacked=replace(_EXPERT, at="feed_forward.experts.", fused="gate_up_proj", form=Form(weight="")),
        normalised=lambda _: False,
        layers=_has_experts,
    ),
    last_norm="final_layernorm",
    unpacked=lambda config: "transformers stacks Jamba's experts in one tensor" if config["num_experts"] > 1 else None,
)

FAMILY = Family(
    name=_NAME,
    models="Jamba v0.1, 1.5, 1.6, 1.7 and Reasoning 3B",
    architectures=("JambaForCausalLM",),
    gguf_arch="jamba",
    rules=_RULES,
    keys=_keys,
    # transformers' JambaConfig
    defaults={
        "jamba": {
            "vocab_size": 65536,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 262144,
            "num_experts_per_tok": 2,
            "num_experts": 16,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "attn_layer_period": 8,
            "attn_layer_offset": 4,
            "mamba_d_state": 16,
            "mamba_d_conv": 4,
            "mamba_expand": 2,
            "mamba_dt_rank": None,
            "mamba_conv_bias": True,
            "mamba_proj_bias": False,
            "tie_word_embeddings": False,
        }
    },
    prepare=_prepare,
    dimensions=_dimensions,
    no_effect=("use_associative_scan", "use_mamba_kernels", "use_mambapy"),
    forward=FORWARD,
    traits=Traits(mamba=True, positions="none", residual_first=True, expert_weights_summed_to_one=False),
    token_roles=TokenRoles(),
)
