"""dots.llm1: Qwen 3's attention, experts chosen by sigmoid scores plus a bias, after a few dense layers.

Shape of the GGUF: llama.cpp's `dots1` architecture (src/models/dots1.cpp).
"""

from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.experts import expert_dimensions, expert_rules, expert_width, shared_rules
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.layers import dense_layers, routed_layers
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.glm4moe import SHARED_EXPERTS
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import NORMS, PLAIN_MLP, PROJECTIONS, ROPE_KINDS, window
from quantkit.families.qwen3 import HEAD_NORM_RULES
from quantkit.forward.description import Architecture, Experts
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import EXPERT, FUSED_EXPERTS, HEAD_NORMS, dense_after, flag, number_of

_MLP, _TO = "model.layers.{layer}.mlp", "blk.{layer}"
_SCORING = ("sigmoid", "noaux_tc")

# transformers' Dots1Config.
DEFAULTS: dict[str, dict[str, Any]] = {
    "dots1": {
        "attention_bias": False,
        "first_k_dense_replace": 0,
        "max_position_embeddings": 2048,
        "max_window_layers": 62,
        "n_group": 1,
        "norm_topk_prob": False,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 1.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "topk_group": 1,
    }
}


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    ffn = expert_width(sizes)
    return expert_dimensions(ffn, ffn * size(sizes.config, "n_shared_experts"))


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The common keys, and the experts' in the converter's order; the router's sigmoid, which the graph needs."""
    config = sizes.config
    return [
        *base_keys(arch, sizes),
        Key(f"{arch}.expert_feed_forward_length", "u32", expert_width(sizes)),
        Key(f"{arch}.leading_dense_block_count", "u32", int(number(config, "first_k_dense_replace") or 0)),
        Key(f"{arch}.expert_shared_count", "u32", size(config, "n_shared_experts")),
        Key(f"{arch}.expert_weights_scale", "f32", number(config, "routed_scaling_factor")),
        Key(f"{arch}.expert_weights_norm", "bool", bool(config.get("norm_topk_prob"))),
    ]


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family="dots.llm1")
    only(config, "attention_bias", False, family="dots.llm1")
    only(config, "scoring_func", *_SCORING, family="dots.llm1")
    # llama.cpp takes the rows of attn_k and attn_v from the number of all heads
    only(config, "num_key_value_heads", size(config, "num_attention_heads"), family="dots.llm1")
    only(config, "n_group", 1, family="dots.llm1")
    only(config, "topk_group", 1, family="dots.llm1")
    kinds = config.get("layer_types") or ()
    if "sliding_attention" in kinds or size(config, "max_window_layers") < size(config, "num_hidden_layers"):
        only({"layer_types": "sliding_attention"}, "layer_types", "full_attention", family="dots.llm1")
    plain_yarn(config, "dots.llm1")
    used, experts = size(config, "num_experts_per_tok"), size(config, "n_routed_experts")
    if used > experts:
        raise CheckpointError(f"config.json: num_experts_per_tok {used} is more than n_routed_experts {experts}")
    # the class scores by sigmoid without stating it
    return {**config, "scoring_func": "sigmoid"}


FORWARD = Architecture(
    attention=Attention(window=window, norms=HEAD_NORMS),
    experts=Experts(
        router="mlp.gate",
        expert=EXPERT,
        mlx="mlp.experts.",
        stacked=FUSED_EXPERTS,
        score="sigmoid",
        correction="mlp.gate.e_score_correction_bias",
        normalised=flag("norm_topk_prob"),
        scale=number_of("routed_scaling_factor"),
        shared=SHARED_EXPERTS,
        layers=dense_after,
    ),
)

FAMILY = Family(
    name="dots.llm1",
    models="dots.llm1",
    architectures=("Dots1ForCausalLM",),
    gguf_arch="dots1",
    rules=(
        *NORMS,
        *PROJECTIONS,
        *HEAD_NORM_RULES,
        *(Rule(rule.source, rule.target, rule.shape, layers=dense_layers) for rule in PLAIN_MLP),
        Rule(f"{_MLP}.gate.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden"), layers=routed_layers),
        Rule(f"{_MLP}.gate.e_score_correction_bias", f"{_TO}.exp_probs_b.bias", ("n_expert",), layers=routed_layers),
        *expert_rules(f"{_MLP}.experts", layers=routed_layers),
        *shared_rules(f"{_MLP}.shared_experts", layers=routed_layers),
        *ENDS,
    ),
    keys=keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    dimensions=_dimensions,
    rope_kinds=ROPE_KINDS,
    # a window is refused by the layers that have it
    no_effect=("sliding_window",),
    forward=FORWARD,
)
