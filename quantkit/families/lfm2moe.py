"""LFM2 with experts after the first layers: LFM2's mixers, a sigmoid router with a bias for the choice.

Shape of the GGUF: llama.cpp's `lfm2moe` architecture (src/models/lfm2moe.cpp), whose router normalises the weights of
the chosen experts and needs the bias.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from quantkit.families.base.family import Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, size
from quantkit.families.base.refusals import only
from quantkit.families.lfm2 import DEFAULTS as LFM2_DEFAULTS
from quantkit.families.lfm2 import ENDS, MIXERS, MLP, check, dimensions
from quantkit.families.lfm2 import FAMILY as LFM2
from quantkit.families.lfm2 import FORWARD as LFM2_FORWARD
from quantkit.families.lfm2 import keys as lfm2_keys
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import Experts, FeedForward
from quantkit.forward.parts import Form
from quantkit.forward.settings import size_of

_SIGMOID = 2


def _n_dense(config: Config) -> int:
    return int(given(config, "num_dense_layers", default=2))


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    check(config, "LFM2-MoE")
    only(config, "norm_topk_prob", True, family="LFM2-MoE")
    only(config, "use_expert_bias", True, family="LFM2-MoE")
    only(config, "routed_scaling_factor", 1, family="LFM2-MoE")
    for name in ("num_experts", "num_experts_per_tok", "moe_intermediate_size"):
        size(config, name)
    if config.get("num_dense_layers") != 0:
        size(config, "num_dense_layers")
    return config


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    *common, vocabulary, width = lfm2_keys(arch, sizes)
    return [
        *common,
        Key(f"{arch}.expert_feed_forward_length", "u32", size(sizes.config, "moe_intermediate_size")),
        Key(f"{arch}.leading_dense_block_count", "u32", _n_dense(sizes.config)),
        Key(f"{arch}.expert_gating_func", "u32", _SIGMOID),
        vocabulary,
        width,
    ]


def _dense(sizes: Hyperparameters) -> Iterable[int]:
    return range(min(_n_dense(sizes.config), sizes.n_layer))


def _with_experts(sizes: Hyperparameters) -> Iterable[int]:
    return range(_n_dense(sizes.config), sizes.n_layer)


_AT, _TO = "model.layers.{layer}.feed_forward", "blk.{layer}"
_EXPERTS = (
    Rule(f"{_AT}.gate.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden")),
    Rule(f"{_AT}.expert_bias", f"{_TO}.exp_probs_b.bias", ("n_expert",)),
    *(
        Rule(f"{_AT}.experts.{{expert}}.{source}.weight", f"{_TO}.ffn_{target}_exps.weight", shape)
        for source, target, shape in (
            ("w1", "gate", ("expert_ffn", "hidden")),
            ("w3", "up", ("expert_ffn", "hidden")),
            ("w2", "down", ("hidden", "expert_ffn")),
        )
    ),
)

_EXPERT = FeedForward(
    at="feed_forward.experts.{}.", gate="w1", up="w3", down="w2", inner=size_of("moe_intermediate_size")
)
FORWARD = replace(
    LFM2_FORWARD,
    feed=FeedForward(at="feed_forward.", gate="w1", up="w3", down="w2"),
    experts=Experts(
        router="feed_forward.gate",
        expert=_EXPERT,
        stacked=FeedForward(
            at="feed_forward.experts.",
            fused="gate_up_proj",
            form=Form(weight=""),
            inner=size_of("moe_intermediate_size"),
        ),
        score="sigmoid",
        correction="feed_forward.expert_bias",
        layers=lambda config, layer: layer >= _n_dense(config),
    ),
)

FAMILY = replace(
    LFM2,
    name="LFM2-MoE",
    models="LFM2-8B-A1B, LFM2-24B-A2B",
    architectures=("Lfm2MoeForCausalLM",),
    gguf_arch="lfm2moe",
    rules=(
        *MIXERS,
        *(replace(rule, layers=_dense) for rule in MLP),
        *(replace(rule, layers=_with_experts) for rule in _EXPERTS),
        *ENDS,
    ),
    keys=_keys,
    defaults={
        "lfm2_moe": {
            **{key: value for key, value in LFM2_DEFAULTS["lfm2"].items() if not key.startswith("block_")},
            "hidden_size": 2048,
            "intermediate_size": 7168,
            "moe_intermediate_size": 1792,
            "num_dense_layers": 2,
            "num_experts": 32,
            "num_experts_per_tok": 4,
            "use_expert_bias": True,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
        }
    },
    prepare=_prepare,
    dimensions=lambda sizes: {**dimensions(sizes), "expert_ffn": size(sizes.config, "moe_intermediate_size")},
    forward=FORWARD,
)
