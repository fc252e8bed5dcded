"""DeepSeek-MoE 16B: Llama's attention, softmax-routed experts and shared ones after the first dense layers.

Shape of the GGUF: llama.cpp's `deepseek` architecture (src/models/deepseek.cpp). transformers has no class; the source
is the published modeling_deepseek.py.
"""

from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.experts import expert_dimensions, expert_rules, expert_width, shared_rules
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.layers import dense_layers, routed_layers
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.traits import Traits
from quantkit.families.llama import ATTENTION, ENDS
from quantkit.families.qwen2 import PLAIN_MLP
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.settings import EXPERT, dense_after, flag

_MLP, _TO = "model.layers.{layer}.mlp", "blk.{layer}"
_FAMILY = "DeepSeek-MoE"

RULES = (
    *(rule for rule in ATTENTION if rule.source.endswith(".weight")),
    *(replace(rule, layers=dense_layers) for rule in PLAIN_MLP),
    Rule(f"{_MLP}.gate.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden"), layers=routed_layers),
    *expert_rules(f"{_MLP}.experts", layers=routed_layers),
    *shared_rules(f"{_MLP}.shared_experts", layers=routed_layers),
    *ENDS,
)

# DeepseekConfig of the published code.
_DEFAULTS: dict[str, Any] = {
    "attention_bias": False,
    "first_k_dense_replace": 0,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "moe_layer_freq": 1,
    "norm_topk_prob": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "scoring_func": "softmax",
    "tie_word_embeddings": False,
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family=_FAMILY)
    only(config, "attention_bias", False, family=_FAMILY)
    only(config, "moe_layer_freq", 1, family=_FAMILY)
    only(config, "norm_topk_prob", False, family=_FAMILY)
    only(config, "scoring_func", "softmax", family=_FAMILY)
    only(config, "head_dim", size(config, "hidden_size") // size(config, "num_attention_heads"), family=_FAMILY)
    used, experts = size(config, "num_experts_per_tok"), size(config, "n_routed_experts")
    if used > experts:
        raise CheckpointError(f"config.json: num_experts_per_tok {used} is more than n_routed_experts {experts}")
    return config


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    ffn = expert_width(sizes)
    return expert_dimensions(ffn, ffn * size(sizes.config, "n_shared_experts"))


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/deepseek.py)."""
    return [
        *base_keys(arch, sizes),
        Key(f"{arch}.rope.dimension_count", "u32", sizes.head_dim),
        Key(f"{arch}.rope.scaling.type", "str", "none"),
        Key(f"{arch}.leading_dense_block_count", "u32", len(dense_layers(sizes))),
        Key(f"{arch}.vocab_size", "u32", sizes.vocab),
        Key(f"{arch}.expert_feed_forward_length", "u32", expert_width(sizes)),
        Key(f"{arch}.expert_weights_scale", "f32", 1.0),
        Key(f"{arch}.expert_shared_count", "u32", size(sizes.config, "n_shared_experts")),
    ]


FORWARD = Architecture(
    experts=Experts(
        router="mlp.gate",
        expert=EXPERT,
        mlx="mlp.switch_mlp.",
        normalised=flag("norm_topk_prob"),
        shared=FeedForward(
            at="mlp.shared_experts.",
            inner=lambda config: int(config["moe_intermediate_size"]) * int(config["n_shared_experts"]),
        ),
        layers=dense_after,
    ),
)

FAMILY = Family(
    name=_FAMILY,
    models="DeepSeek-MoE 16B",
    architectures=("DeepseekForCausalLM",),
    gguf_arch="deepseek",
    rules=RULES,
    keys=_keys,
    defaults={"deepseek": _DEFAULTS},
    prepare=_prepare,
    dimensions=_dimensions,
    rope_kinds=("default",),
    forward=FORWARD,
    traits=Traits(expert_weights_summed_to_one=False),
)
