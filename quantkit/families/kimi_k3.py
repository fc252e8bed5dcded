"""Kimi K3 (text): Kimi Linear with attention over earlier layers, experts within a latent, SiTU and output gates.

Shape of the GGUF: llama.cpp's `kimi-k3` architecture (src/models/kimi-k3.cpp). The norm and the row that score earlier
hidden states are one vector, their product. transformers has no class; the source is llama.cpp's graph.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.adjust import negative_exp
from quantkit.families.base.experts import expert_rules
from quantkit.families.base.family import Dropped, Family, Key, Rule, Take
from quantkit.families.base.fused import rows
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.layers import routed_layers
from quantkit.families.base.multimodal import TEXT_PREFIXES, TOWERS, TOWERS_LEFT_OUT
from quantkit.families.base.refusals import only
from quantkit.families.base.traits import Traits
from quantkit.families.deepseek import matrix
from quantkit.families.kimi_linear import (
    DENSE,
    ENDS,
    LOW_RANK_DECAY,
    ROUTER,
    SHARED_EXPERTS,
    WITH_DELTA,
    WITH_LATENT,
    attention_rules,
)
from quantkit.families.kimi_linear import FORWARD as KIMI_LINEAR
from quantkit.families.kimi_linear import dimensions as kimi_dimensions
from quantkit.families.kimi_linear import keys as kimi_keys
from quantkit.families.kimi_linear_config import checked_layers, has_delta, prepare_kimi
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import FeedForward
from quantkit.forward.kimi_parts import KimiDelta, Latent, ResidualAttention
from quantkit.forward.settings import flag, number_of, size_of
from quantkit.tokenizer.roles import TokenRoles

_NAME, _FAMILY = "KimiK3ForConditionalGeneration", "Kimi K3"
_LAYER, _TO = "model.layers.{layer}", "blk.{layer}"
_ATTENTION, _MOE = f"{_LAYER}.self_attn", f"{_LAYER}.block_sparse_moe"
_HEADS_PADDED_TO = 128


def _scores(source: str, target: str) -> Rule:
    return Rule(f"{source}_norm.weight", f"{target}.weight", ("hidden",), times=f"{source}_proj.weight")


def _latent_layers(sizes: Hyperparameters) -> Iterable[int]:
    return routed_layers(sizes) if optional_size(sizes.config, "routed_expert_hidden_size") else ()


def _normed_layers(sizes: Hyperparameters) -> Iterable[int]:
    return _latent_layers(sizes) if sizes.config.get("latent_moe_use_norm") else ()


def _gated_layers(sizes: Hyperparameters) -> Iterable[int]:
    return WITH_LATENT(sizes) if sizes.config.get("mla_use_output_gate") else ()


def _first_heads(sizes: Hyperparameters) -> Take:
    return Take(rows(0, sizes.n_head).rows)


_DECAY = Rule(f"{_ATTENTION}.A_log", f"{_TO}.ssm_a", ("n_head",), adjust=negative_exp)
_RULES = (
    *attention_rules((*LOW_RANK_DECAY, matrix(f"{_ATTENTION}.g_proj", "ssm_g", "delta", "hidden")), _DECAY),
    # published files have more of them than heads
    replace(_DECAY, shape=("padded_heads",), take=_first_heads, layers=WITH_DELTA),
    matrix(f"{_ATTENTION}.g_proj", "attn_gate", "values", "hidden", layers=_gated_layers),
    _scores(f"{_LAYER}.self_attention_res", f"{_TO}.attn_res_score"),
    _scores(f"{_LAYER}.mlp_res", f"{_TO}.ffn_res_score"),
    _scores("model.output_attn_res", "output_res_score"),
    *DENSE,
    *ROUTER,
    *expert_rules(f"{_MOE}.experts", layers=routed_layers, names=("w1", "w3", "w2")),
    matrix(f"{_MOE}.routed_expert_down_proj", "ffn_routed_down", "expert_hidden", "hidden", layers=_latent_layers),
    matrix(f"{_MOE}.routed_expert_up_proj", "ffn_routed_up", "hidden", "expert_hidden", layers=_latent_layers),
    matrix(f"{_MOE}.routed_expert_norm", "ffn_routed_norm", "expert_hidden", layers=_normed_layers),
    *SHARED_EXPERTS,
    *ENDS,
)


def _in_latent(rule: Rule) -> Rule:
    """A rule of a routed expert, whose inputs are the latent's."""
    if ".experts." not in rule.source:
        return rule
    return replace(rule, shape=tuple("expert_hidden" if name == "hidden" else name for name in rule.shape))


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph does not have.

    Raises:
        CheckpointError: a layer is of no kind or of two, or a size is missing.
        UnsupportedError: a setting that llama.cpp does not run.
    """
    nested = config["linear_attn_config"] = checked_layers(config)
    prepare_kimi(config, _FAMILY)
    only(config, "hidden_act", "situ", family=_FAMILY)
    only(nested, "use_full_rank_gate", True, family=_FAMILY)
    if nested.get("use_full_rank_gate") is None:
        raise CheckpointError("config.json: linear_attn_config has no use_full_rank_gate; add it, it must be true")
    for name in ("attn_res_block_size", "kv_lora_rank"):
        size(config, name)
    bound = number(nested, "gate_lower_bound")
    if bound is not None and bound >= 0:
        raise CheckpointError(f"config.json: gate_lower_bound must be less than zero, not {bound:g}; correct it")
    if not (number(config, "activation_situ_beta") or 0.0) > 0:
        raise CheckpointError(
            f"config.json: activation_situ_beta must be greater than zero, not {config.get('activation_situ_beta')!r};"
            " correct it"
        )
    latent = optional_size(config, "routed_expert_hidden_size")
    if latent is not None and latent > size(config, "hidden_size"):
        raise CheckpointError(
            f"config.json: routed_expert_hidden_size {latent} is more than hidden_size {config['hidden_size']}; correct"
            " one of them"
        )
    config["head_dim_stated"] = config.get("head_dim") is not None
    if not config["head_dim_stated"]:
        config["head_dim"] = size(config, "qk_rope_head_dim")
    return config


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    return {
        **kimi_dimensions(sizes),
        "expert_hidden": optional_size(sizes.config, "routed_expert_hidden_size") or sizes.hidden,
        "padded_heads": -(-sizes.n_head // _HEADS_PADDED_TO) * _HEADS_PADDED_TO,
    }


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """Kimi Linear's keys and K3's own, in the converter's order (conversion/kimi_k3.py)."""
    config, nested = sizes.config, sizes.config["linear_attn_config"]
    latent, attention = size(config, "kv_lora_rank"), f"{arch}.attention"
    common = {key.name for key in base_keys(arch, sizes)}
    of_heads = {
        f"{attention}.key_length": Key(f"{attention}.key_length", "u32", latent + size(config, "qk_rope_head_dim")),
        f"{attention}.value_length": Key(f"{attention}.value_length", "u32", latent),
    }
    stated = bool(config["head_dim_stated"])
    keys = []
    for key in kimi_keys(arch, sizes):
        if key.name in of_heads and key.name in common:
            keys += [of_heads[key.name]] if stated else []
            continue
        keys.append(key)
        if key.name == f"{arch}.kda.head_dim":
            if (bound := number(nested, "gate_lower_bound")) is not None:
                keys.append(Key(f"{arch}.kda.gate_lower_bound", "f32", bound))
            if (rank := optional_size(config, "q_lora_rank")) is not None:
                keys.append(Key(f"{attention}.q_lora_rank", "u32", rank))
        if key.name == f"{arch}.rope.dimension_count" and not stated:
            keys += of_heads.values()
    keys.append(Key(f"{arch}.expert_weights_norm", "bool", bool(config.get("moe_renormalize", True))))
    if (width := optional_size(config, "routed_expert_hidden_size")) is not None:
        keys.append(Key(f"{arch}.expert_latent_length", "u32", width))
    return [
        *keys,
        Key(f"{arch}.activation.situ_beta", "f32", number(config, "activation_situ_beta")),
        Key(f"{arch}.activation.situ_linear_beta", "f32", number(config, "activation_situ_linear_beta") or 0.0),
        Key(f"{arch}.attn_res.block_size", "u32", size(config, "attn_res_block_size")),
    ]


def _situ(config: Config) -> tuple[float, float]:
    return float(config["activation_situ_beta"]), float(given(config, "activation_situ_linear_beta", default=0.0))


# moonshotai/Kimi-K3
DEFAULTS: dict[str, dict[str, Any]] = {
    "kimi_linear": {
        "first_k_dense_replace": 1,
        "moe_renormalize": True,
        "moe_router_activation_func": "sigmoid",
        "num_expert_group": 1,
        "rms_norm_eps": 1e-5,
        "routed_scaling_factor": 1.0,
        "tie_word_embeddings": False,
    }
}

_EXPERTS = KIMI_LINEAR.experts
assert _EXPERTS is not None and _EXPERTS.expert is not None and _EXPERTS.shared is not None
FORWARD = replace(
    KIMI_LINEAR,
    attention=replace(
        KIMI_LINEAR.attention,
        value_width=size_of("v_head_dim"),
        gate="g_proj",
    ),
    kimi_delta=KimiDelta(
        layers=has_delta,
        gate=("g_proj",),
        bound=lambda config: number(config["linear_attn_config"], "gate_lower_bound"),
    ),
    feed=FeedForward(situ=_situ),
    residual_attention=ResidualAttention(),
    experts=replace(
        _EXPERTS,
        expert=replace(_EXPERTS.expert, situ=_situ),
        shared=replace(_EXPERTS.shared, situ=_situ),
        normalised=flag("moe_renormalize", True),
        scale=number_of("routed_scaling_factor", 1.0),
        latent=Latent(
            width=size_of("routed_expert_hidden_size"),
            has_norm=flag("latent_moe_use_norm"),
            down="block_sparse_moe.routed_expert_down_proj",
            up="block_sparse_moe.routed_expert_up_proj",
            norm="block_sparse_moe.routed_expert_norm",
        ),
    ),
    variant=lambda config: (
        {}
        if config.get("mla_use_output_gate")
        else {"attention": replace(KIMI_LINEAR.attention, value_width=size_of("v_head_dim"))}
    ),
    unpacked=lambda _: "transformers has no class of Kimi K3",
)

FAMILY = Family(
    name=_FAMILY,
    models="Kimi K3 2.8T-A50B",
    architectures=(_NAME,),
    gguf_arch="kimi-k3",
    rules=tuple(_in_latent(rule) for rule in _RULES),
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    rename=TEXT_PREFIXES,
    dropped=(Dropped(TOWERS, TOWERS_LEFT_OUT),),
    dimensions=_dimensions,
    text_models={_NAME: (_NAME, "kimi_linear")},
    rope_kinds=("default",),
    forward=FORWARD,
    traits=Traits(positions="none", kimi_delta=True),
    token_roles=TokenRoles(stated={"eos": "eos_token_id"}),
)
