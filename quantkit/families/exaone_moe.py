"""K-EXAONE: norms before attention and feed-forward, windows with rope in three of four layers, experts by sigmoid.

Shape of the GGUF: llama.cpp's `exaone-moe` architecture (src/models/exaone-moe.cpp). Layers without a window have no
rope.
"""

import re
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.experts import expert_dimensions, expert_rules, expert_width, shared_rules
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.layers import dense_layers, routed_layers
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.traits import Traits
from quantkit.families.exaone4 import layers_with_window
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import NORMS, PLAIN_MLP, PROJECTIONS
from quantkit.families.qwen3 import HEAD_NORM_RULES
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import EXPERT, FUSED_EXPERTS, HEAD_NORMS, dense_after, flag, number_of, slides, window

_MLP, _TO = "model.layers.{layer}.mlp", "blk.{layer}"
_PATTERN = 4

# One matrix and its norms serve all layers for a later token.
NEXTN = tuple(
    Rule(f"mtp.{source}.weight", f"{_TO}.nextn.{target}.weight", shape, draft=True)
    for source, target, shape in (
        ("fc", "eh_proj", ("hidden", "two_hidden")),
        ("pre_fc_norm_embedding", "enorm", ("hidden",)),
        ("pre_fc_norm_hidden", "hnorm", ("hidden",)),
        ("norm", "shared_head_norm", ("hidden",)),
    )
)

RULES = (
    *NORMS,
    *PROJECTIONS,
    *HEAD_NORM_RULES,
    *(replace(rule, layers=dense_layers) for rule in PLAIN_MLP),
    Rule(f"{_MLP}.gate.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden"), layers=routed_layers),
    Rule(f"{_MLP}.e_score_correction_bias", f"{_TO}.exp_probs_b.bias", ("n_expert",), layers=routed_layers),
    Rule(f"{_MLP}.gate.e_score_correction_bias", f"{_TO}.exp_probs_b.bias", ("n_expert",), layers=routed_layers),
    *expert_rules(f"{_MLP}.experts", layers=routed_layers),
    *shared_rules(f"{_MLP}.shared_experts", layers=routed_layers),
    *(
        replace(rule, source=rule.source.replace("model.layers.{layer}", "mtp.layers.{draft}"), draft=True)
        for rule in (*NORMS, *PROJECTIONS, *HEAD_NORM_RULES, *PLAIN_MLP)
    ),
    *NEXTN,
    *ENDS,
)

# transformers' ExaoneMoeConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "exaone_moe": {
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "moe_intermediate_size": 1024,
        "n_group": 1,
        "norm_topk_prob": True,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 32,
        "num_shared_experts": 1,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "sliding_window": 4096,
        "sliding_window_pattern": _PATTERN,
        "tie_word_embeddings": False,
        "topk_group": 1,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    family = "K-EXAONE"
    only(config, "hidden_act", *SILU, family=family)
    only(config, "scoring_func", "sigmoid", family=family)
    only(config, "n_group", 1, family=family)
    only(config, "tie_word_embeddings", False, family=family)
    if config.get("sliding_window") is None:
        raise CheckpointError(f"config.json has no sliding_window, but llama.cpp runs {family} with one only; add it")
    kinds = config.get("mlp_layer_types")
    dense, layers = int(number(config, "first_k_dense_replace") or 0), size(config, "num_hidden_layers")
    only(
        {"mlp_layer_types": kinds}, "mlp_layer_types", ["dense"] * dense + ["sparse"] * (layers - dense), family=family
    )
    used, experts = size(config, "num_experts_per_tok"), size(config, "num_experts")
    if used > experts:
        raise CheckpointError(f"config.json: num_experts_per_tok {used} is more than num_experts {experts}")
    return config


def _observe(config: dict[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """config.json with the number of layers that predict a later token in the checkpoint; transformers loses them."""
    numbers = {int(match[1]) for name in tensors if (match := re.match(r"mtp\.layers\.(\d+)\.", name))}
    return {**config, "num_nextn_predict_layers": len(numbers)}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/exaone.py)."""
    config, ffn = sizes.config, expert_width(sizes)
    shared = size(config, "num_shared_experts")
    return [
        *base_keys(arch, sizes),
        Key(f"{arch}.vocab_size", "u32", sizes.vocab),
        Key(f"{arch}.attention.sliding_window", "u32", optional_size(config, "sliding_window")),
        Key(f"{arch}.attention.sliding_window_pattern", "bools", layers_with_window(config, sizes.n_layer)),
        Key(f"{arch}.expert_feed_forward_length", "u32", ffn),
        Key(f"{arch}.expert_shared_count", "u32", shared),
        Key(f"{arch}.expert_shared_feed_forward_length", "u32", ffn * shared),
        Key(f"{arch}.expert_weights_scale", "f32", number(config, "routed_scaling_factor")),
        Key(f"{arch}.expert_weights_norm", "bool", bool(config.get("norm_topk_prob"))),
        Key(f"{arch}.leading_dense_block_count", "u32", len(dense_layers(sizes))),
        Key(f"{arch}.nextn_predict_layers", "u32", sizes.n_draft),
        Key(f"{arch}.rope.scaling.type", "str", "none"),
    ]


def _every_fourth(_config: Config, layer: int) -> bool:
    return (layer + 1) % _PATTERN != 0


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    ffn = expert_width(sizes)
    shared = ffn * size(sizes.config, "num_shared_experts")
    return {**expert_dimensions(ffn, shared), "two_hidden": 2 * sizes.hidden}


FORWARD = Architecture(
    attention=Attention(
        norms=HEAD_NORMS,
        rope=lambda config, layer: config if slides(config, layer, _every_fourth(config, layer)) else None,
        window=window(_every_fourth),
    ),
    experts=Experts(
        router="mlp.gate",
        expert=EXPERT,
        stacked=FUSED_EXPERTS,
        score="sigmoid",
        correction="mlp.e_score_correction_bias",
        normalised=flag("norm_topk_prob", True),
        scale=number_of("routed_scaling_factor", 2.5),
        shared=FeedForward(
            at="mlp.shared_experts.",
            inner=lambda config: (
                int(config["moe_intermediate_size"]) * int(given(config, "num_shared_experts", default=1))
            ),
        ),
        layers=dense_after,
    ),
)

FAMILY = Family(
    name="K-EXAONE",
    models="K-EXAONE-236B-A23B",
    architectures=("ExaoneMoeForCausalLM", "ExaoneMoEForCausalLM"),
    gguf_arch="exaone-moe",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    observe=_observe,
    prepare=_prepare,
    dimensions=_dimensions,
    rope_kinds=("default",),
    forward=FORWARD,
    traits=Traits(sliding_every=_PATTERN),
)
