"""Nemotron-H and Nemotron 3: each layer is Mamba 2, attention, a feed-forward or experts, after one norm.

Shape of the GGUF: llama.cpp's `nemotron_h` and `nemotron_h_moe` architectures (src/models/nemotron-h.cpp). Attention
has no positions. Feed-forward and experts have no gate and a squared ReLU; Nemotron 3 Super's experts work on a narrow
projection of the hidden states.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from quantkit.families.base.family import Dropped, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.keys import base_keys, head_dim_keys
from quantkit.families.base.mamba import mamba2_dimensions, mamba2_keys, mamba2_rules
from quantkit.families.base.traits import Traits
from quantkit.families.nemotron_h_config import ATTENTION, DEFAULTS, MAMBA, MLP, MOE, NAME, kinds, prepare
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.parts import Form
from quantkit.forward.recurrent_mixers import Mamba2
from quantkit.forward.settings import flag, number_of, size_of

_CONTEXT_WITHOUT_ROPE = 1 << 20


def _layers_of(*names: str) -> Callable[[Hyperparameters], Iterable[int]]:
    return lambda sizes: [layer for layer, kind in enumerate(sizes.config["layers_block_type"]) if kind in names]


def _is(*names: str) -> Callable[[Config, int], bool]:
    return lambda config, layer: kinds(config)[layer] in names


def _has_experts(sizes: Hyperparameters) -> bool:
    return MOE in sizes.config["layers_block_type"]


def _mamba_dimensions(config: Mapping[str, Any]) -> dict[str, int]:
    heads = size(config, "mamba_num_heads")
    return mamba2_dimensions(
        size(config, "hidden_size"),
        heads * size(config, "mamba_head_dim"),
        heads,
        size(config, "n_groups"),
        size(config, "ssm_state_size"),
        size(config, "conv_kernel"),
    )


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    dims = _mamba_dimensions(sizes.config)
    if not _has_experts(sizes):
        return dims
    latent = optional_size(sizes.config, "moe_latent_size")
    return {
        **dims,
        "expert_ffn": size(sizes.config, "moe_intermediate_size"),
        "shared_ffn": size(sizes.config, "moe_shared_expert_intermediate_size"),
        "expert_hidden": sizes.hidden if latent is None else latent,
    }


def _channels(sizes: Hyperparameters) -> int:
    return _mamba_dimensions(sizes.config)["ssm_channels"]


def _has_latent(sizes: Hyperparameters) -> bool:
    return _has_experts(sizes) and sizes.config.get("moe_latent_size") is not None


_AT, _TO = "backbone.layers.{layer}.mixer", "blk.{layer}"


def _rule(kind: str, source: str, target: str, *shape: str, required: bool = True) -> Rule:
    return Rule(f"{_AT}.{source}", f"{_TO}.{target}", shape, layers=_layers_of(kind), required=required)


def _linear(kind: str, source: str, target: str, *shape: str) -> tuple[Rule, Rule]:
    weight = _rule(kind, f"{source}.weight", f"{target}.weight", *shape)
    return weight, _rule(kind, f"{source}.bias", f"{target}.bias", shape[0], required=False)


_RULES = (
    Rule("backbone.embeddings.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule("backbone.layers.{layer}.norm.weight", f"{_TO}.attn_norm.weight", ("hidden",)),
    *(
        replace(rule, required=not rule.source.endswith("conv1d.bias"))
        for rule in mamba2_rules(f"{_AT}.", _channels, _layers_of(MAMBA))
    ),
    # the converter reorders the rows for a rope that the graph does not have
    replace(_rule(ATTENTION, "q_proj.weight", "attn_q.weight", "q", "hidden"), heads="n_head"),
    replace(_rule(ATTENTION, "k_proj.weight", "attn_k.weight", "kv", "hidden"), heads="n_head_kv"),
    _rule(ATTENTION, "v_proj.weight", "attn_v.weight", "kv", "hidden"),
    _rule(ATTENTION, "o_proj.weight", "attn_output.weight", "hidden", "q"),
    *_linear(MLP, "up_proj", "ffn_up", "ffn", "hidden"),
    *_linear(MLP, "down_proj", "ffn_down", "hidden", "ffn"),
    _rule(MOE, "gate.weight", "ffn_gate_inp.weight", "n_expert", "hidden"),
    _rule(MOE, "gate.e_score_correction_bias", "exp_probs_b.bias", "n_expert"),
    _rule(MOE, "experts.{expert}.up_proj.weight", "ffn_up_exps.weight", "expert_ffn", "expert_hidden"),
    _rule(MOE, "experts.{expert}.down_proj.weight", "ffn_down_exps.weight", "expert_hidden", "expert_ffn"),
    _rule(MOE, "experts.up_proj", "ffn_up_exps.weight", "n_expert", "expert_ffn", "expert_hidden"),
    _rule(MOE, "experts.down_proj", "ffn_down_exps.weight", "n_expert", "expert_hidden", "expert_ffn"),
    _rule(MOE, "shared_experts.up_proj.weight", "ffn_up_shexp.weight", "shared_ffn", "hidden"),
    _rule(MOE, "shared_experts.down_proj.weight", "ffn_down_shexp.weight", "hidden", "shared_ffn"),
    *(
        replace(rule, when=_has_latent)
        for rule in (
            _rule(MOE, "fc1_latent_proj.weight", "ffn_latent_down.weight", "expert_hidden", "hidden"),
            _rule(MOE, "fc2_latent_proj.weight", "ffn_latent_up.weight", "hidden", "expert_hidden"),
        )
    ),
    Rule("backbone.norm_f.weight", "output_norm.weight", ("hidden",)),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), required=False, tied_to_embedding=True),
)


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    config, layers = sizes.config, sizes.config["layers_block_type"]
    width = size(config, "moe_intermediate_size") if _has_experts(sizes) else sizes.ffn
    replaced = {
        "context_length": ("u32", _CONTEXT_WITHOUT_ROPE),
        "feed_forward_length": ("i32s", [width if kind in (MLP, MOE) else 0 for kind in layers]),
        "attention.head_count_kv": ("i32s", [sizes.n_head_kv if kind == ATTENTION else 0 for kind in layers]),
    }
    keys = [*base_keys(arch, replace(sizes, head_dim_given=False))]
    keys = [
        Key(key.name, *replaced[name]) if (name := key.name.removeprefix(f"{arch}.")) in replaced else key
        for key in keys
    ]
    keys += [
        Key(f"{arch}.vocab_size", "u32", sizes.vocab),
        Key(f"{arch}.rope.dimension_count", "u32", sizes.hidden // sizes.n_head),
        *mamba2_keys(arch, _mamba_dimensions(config), size(config, "ssm_state_size")),
        Key(f"{arch}.rope.scaling.finetuned", "bool", False),
        *head_dim_keys(arch, sizes),
    ]
    if _has_experts(sizes):
        keys += [
            Key(f"{arch}.expert_feed_forward_length", "u32", width),
            Key(
                f"{arch}.expert_shared_feed_forward_length", "u32", size(config, "moe_shared_expert_intermediate_size")
            ),
            Key(f"{arch}.expert_shared_count", "u32", size(config, "n_shared_experts")),
            Key(f"{arch}.expert_weights_norm", "bool", bool(config.get("norm_topk_prob"))),
            Key(f"{arch}.expert_weights_scale", "f32", number(config, "routed_scaling_factor")),
        ]
    if _has_latent(sizes):
        keys.append(Key(f"{arch}.moe_latent_size", "u32", size(config, "moe_latent_size")))
    return keys


def _groups(config: Config) -> tuple[int, int]:
    return int(given(config, "n_group", default=1)), int(given(config, "topk_group", default=1))


_EXPERT = FeedForward(
    at="mixer.experts.{}.",
    gate=None,
    inner=size_of("moe_intermediate_size"),
    activation=("mlp_hidden_act",),
    default_activation="relu2",
)
FORWARD = Architecture(
    base="backbone.",
    embedding="embeddings",
    attention_norm="norm",
    feed_norm="norm",
    mixes=_is(MAMBA, ATTENTION),
    feeds=_is(MLP, MOE),
    attention=Attention(at="mixer.", rope=lambda _config, _layer: None),
    mamba2=Mamba2(
        layers=_is(MAMBA),
        at="mixer.",
        heads=size_of("mamba_num_heads"),
        head_width=size_of("mamba_head_dim"),
        groups=size_of("n_groups"),
        state=size_of("ssm_state_size"),
    ),
    feed=replace(_EXPERT, at="mixer.", inner=size_of("intermediate_size")),
    experts=Experts(
        router="mixer.gate",
        expert=_EXPERT,
        stacked=replace(_EXPERT, at="mixer.experts.", form=Form(weight="")),
        score="sigmoid",
        correction="mixer.gate.e_score_correction_bias",
        groups=_groups,
        group_by=2,
        normalised=flag("norm_topk_prob", True),
        scale=number_of("routed_scaling_factor"),
        shared=replace(_EXPERT, at="mixer.shared_experts.", inner=size_of("moe_shared_expert_intermediate_size")),
        layers=_is(MOE),
    ),
    last_norm="norm_f",
    unpacked=lambda config: "transformers stacks Nemotron-H's experts in one tensor" if MOE in kinds(config) else None,
    refused=lambda config: "moe_latent_size" if config.get("moe_latent_size") is not None else None,
)

FAMILY = Family(
    name=NAME,
    models="Nemotron-H 4B to 56B, Nemotron Nano 2, Nemotron 3 Nano and Super",
    architectures=("NemotronHForCausalLM",),
    gguf_arch="nemotron_h",
    other_archs=("nemotron_h_moe",),
    arch_of=lambda sizes: "nemotron_h_moe" if _has_experts(sizes) else "nemotron_h",
    rules=_RULES,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=prepare,
    rename=((r"^model\.", "backbone."),),
    dropped=(Dropped(r"mtp\..*", "they predict a later token, and quantkit does not convert them for this family"),),
    dimensions=_dimensions,
    no_effect=(
        "chunk_size",
        "expand",
        "mamba_ssm_cache_dtype",
        "moe_shared_expert_overlap",
        "mtp_layers_block_type",
        "num_logits_to_keep",
        "num_nextn_predict_layers",
        "rescale_prenorm_residual",
        "residual_in_fp32",
        "sliding_window",
        "time_step_floor",
        "time_step_max",
        "time_step_min",
        "use_mamba_kernels",
    ),
    forward=FORWARD,
    traits=Traits(mamba2=True, positions="none", output_after_norm=True),
)
