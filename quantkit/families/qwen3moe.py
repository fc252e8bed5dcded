"""Qwen3-MoE: Qwen 3's attention, and a router over experts whose weights are made to sum to one.

Shape of the GGUF: llama.cpp's `qwen3moe` architecture (src/models/qwen3moe.cpp).
"""

from typing import Any

from quantkit.families.base.family import Family
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import NORMS, PROJECTIONS, ROPE_KINDS, no_window
from quantkit.families.qwen2moe import ROUTED, dimensions, every_layer_routed, has_experts, keys
from quantkit.families.qwen3 import HEAD_NORM_RULES
from quantkit.forward.description import Architecture, Experts
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import EXPERT, FUSED_EXPERTS, HEAD_NORMS, flag, if_used

# transformers' Qwen3MoeConfig; its class states no head_dim, the published files do.
DEFAULTS = {
    "qwen3_moe": {
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "max_position_embeddings": 32768,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "use_sliding_window": False,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family="Qwen3-MoE")
    only(config, "attention_bias", False, family="Qwen3-MoE")
    only(config, "norm_topk_prob", True, family="Qwen3-MoE")
    every_layer_routed(config, "Qwen3-MoE")
    no_window(config, "Qwen3-MoE", by_layer=False)
    plain_yarn(config, "Qwen3-MoE")
    return config


FORWARD = Architecture(
    attention=Attention(window=if_used, norms=HEAD_NORMS),
    experts=Experts(
        router="mlp.gate",
        expert=EXPERT,
        mlx="mlp.switch_mlp.",
        stacked=FUSED_EXPERTS,
        normalised=flag("norm_topk_prob"),
        layers=has_experts,
    ),
)

FAMILY = Family(
    name="Qwen3-MoE",
    models="Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder",
    architectures=("Qwen3MoeForCausalLM",),
    gguf_arch="qwen3moe",
    rules=NORMS + PROJECTIONS + HEAD_NORM_RULES + ROUTED + ENDS,
    keys=keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    dimensions=dimensions,
    rope_kinds=ROPE_KINDS,
    forward=FORWARD,
)
