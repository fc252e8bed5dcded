"""Qwen3-Next: Qwen 3.5's mixture with DeltaNet's projections fused by key head, and plain rope.

Shape of the GGUF: llama.cpp's `qwen3next` architecture (src/models/qwen3next.cpp). Value heads stay with their key
head, and beta and decay stay fused.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from quantkit.families.base.adjust import negative_exp
from quantkit.families.base.delta_net import WITH_DELTA_NET, delta_net_keys
from quantkit.families.base.family import Dropped, Family, Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, size
from quantkit.families.base.refusals import only
from quantkit.families.qwen2 import ROPE_KINDS
from quantkit.families.qwen2moe import every_layer_routed
from quantkit.families.qwen2moe import keys as expert_keys
from quantkit.families.qwen35 import (
    DEFAULTS,
    ENDS,
    GATED_ATTENTION,
    NORMS,
    PREFIXES,
    TRAITS,
    draft_rules,
    observe,
    prepare_delta_net,
)
from quantkit.families.qwen35moe import EXPERT_RULES, all_dimensions
from quantkit.families.qwen35moe import FORWARD as QWEN35_MOE
from quantkit.forward.recurrent_mixers import DeltaNet
from quantkit.forward.settings import flag

_LINEAR, _TO = "model.layers.{layer}.linear_attn", "blk.{layer}"


def _rows(sizes: Hyperparameters, first: int, last: int) -> Take:
    """Rows of parts `first` to `last` of each key head's queries, keys, values and gates, part by part."""
    config = sizes.config
    groups, width = size(config, "linear_num_key_heads"), size(config, "linear_key_head_dim")
    values = size(config, "linear_value_head_dim") * size(config, "linear_num_value_heads") // groups
    starts = np.cumsum([0, width, width, values, values])
    by_head = np.arange(groups * int(starts[-1]), dtype=np.int64).reshape(groups, -1)
    return Take(
        np.concatenate([by_head[:, starts[part] : starts[part + 1]].reshape(-1) for part in range(first, last)])
    )


def _of_channels(sizes: Hyperparameters) -> Take:
    return _rows(sizes, 0, 3)


def _of_gate(sizes: Hyperparameters) -> Take:
    return _rows(sizes, 3, 4)


def _all_channels(sizes: Hyperparameters) -> Take:
    return Take(np.arange(all_dimensions(sizes)["linear_channels"], dtype=np.int64))


_DELTA_NET = (
    Rule(f"{_LINEAR}.in_proj_qkvz.weight", f"{_TO}.attn_qkv.weight", ("linear_qkvz", "hidden"), take=_of_channels),
    Rule(f"{_LINEAR}.in_proj_qkvz.weight", f"{_TO}.attn_gate.weight", ("linear_qkvz", "hidden"), take=_of_gate),
    Rule(f"{_LINEAR}.in_proj_ba.weight", f"{_TO}.ssm_ba.weight", ("linear_ba", "hidden")),
    Rule(
        f"{_LINEAR}.conv1d.weight",
        f"{_TO}.ssm_conv1d.weight",
        ("linear_channels", "1", "linear_kernel"),
        take=_all_channels,
    ),
    Rule(f"{_LINEAR}.dt_bias", f"{_TO}.ssm_dt.bias", ("linear_value_heads",)),
    Rule(f"{_LINEAR}.A_log", f"{_TO}.ssm_a", ("linear_value_heads",), adjust=negative_exp),
    Rule(f"{_LINEAR}.norm.weight", f"{_TO}.ssm_norm.weight", ("linear_value_width",)),
    Rule(f"{_LINEAR}.out_proj.weight", f"{_TO}.ssm_out.weight", ("hidden", "linear_values")),
)


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    return [*expert_keys(arch, sizes), *delta_net_keys(arch, sizes)]


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    prepare_delta_net(config, "Qwen3-Next")
    only(config, "norm_topk_prob", True, family="Qwen3-Next")
    every_layer_routed(config, "Qwen3-Next")
    size(config, "shared_expert_intermediate_size")
    return config


_EXPERTS = QWEN35_MOE.experts
assert _EXPERTS is not None and QWEN35_MOE.delta_net is not None
FORWARD = replace(
    QWEN35_MOE,
    delta_net=DeltaNet(layers=QWEN35_MOE.delta_net.layers, fused=("in_proj_qkvz", "in_proj_ba")),
    # mlx-lm converts the norms and the convolution only of experts that are not stacked
    experts=replace(_EXPERTS, normalised=flag("norm_topk_prob", True), mlx=None),
    mlx_type=None,
)

FAMILY = Family(
    name="Qwen3-Next",
    models="Qwen3-Next-80B-A3B, Qwen3-Coder-Next",
    architectures=("Qwen3NextForCausalLM",),
    gguf_arch="qwen3next",
    rules=(
        *NORMS,
        *GATED_ATTENTION,
        *(replace(rule, layers=WITH_DELTA_NET) for rule in _DELTA_NET),
        *EXPERT_RULES,
        *draft_rules((*NORMS, *GATED_ATTENTION, *EXPERT_RULES)),
        *ENDS,
    ),
    keys=_keys,
    # transformers' Qwen3NextConfig
    defaults={
        "qwen3_next": {
            **DEFAULTS["qwen3_5_text"],
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 48,
            "num_key_value_heads": 2,
            "decoder_sparse_step": 1,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_experts_per_tok": 10,
            "num_experts": 512,
            "norm_topk_prob": True,
        }
    },
    observe=observe,
    prepare=_prepare,
    dimensions=all_dimensions,
    rename=PREFIXES,
    dropped=(
        Dropped(
            r"(model\.)?mtp\..*",
            "they predict a second token, and this GGUF has no layer for that",
            when=lambda sizes: sizes.n_draft == 0,
        ),
    ),
    rope_kinds=ROPE_KINDS,
    forward=FORWARD,
    traits=TRAITS,
)
