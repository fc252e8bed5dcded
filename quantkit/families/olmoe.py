"""OLMoE: OLMo 2's norms over queries and keys, and routed experts whose weights are taken as the router gives them.

Shape of the GGUF: llama.cpp's `olmoe` architecture (src/models/olmoe.cpp), which has as many keys as queries.
"""

from dataclasses import replace
from typing import Any

from quantkit.families.base.family import Family
from quantkit.families.base.hyperparameters import size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.base.traits import Traits
from quantkit.families.llama import ENDS
from quantkit.families.olmo2 import QK_NORMS
from quantkit.families.qwen2 import NORMS, PROJECTIONS, ROPE_KINDS
from quantkit.families.qwen2moe import ROUTED, dimensions
from quantkit.forward.description import Architecture, Experts
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import EXPERT, FUSED_EXPERTS, HEAD_NORMS, flag, size_of

# transformers' OlmoeConfig.
DEFAULTS = {
    "olmoe": {
        "max_position_embeddings": 4096,
        "norm_topk_prob": False,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }
}


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse settings that llama.cpp's graph does not have."""
    for name, allowed in (
        ("hidden_act", SILU),
        ("attention_bias", (False,)),
        ("norm_topk_prob", (False,)),
        ("tie_word_embeddings", (False,)),
        ("num_key_value_heads", (size(config, "num_attention_heads"),)),
        ("clip_qkv", ("null",)),
    ):
        only(config, name, *allowed, family="OLMoE")
    plain_yarn(config, "OLMoE")
    return {**config, "moe_intermediate_size": size(config, "intermediate_size")}


FORWARD = Architecture(
    attention=Attention(norms=HEAD_NORMS, normed="all", clip="clip_qkv"),
    experts=Experts(
        router="mlp.gate",
        expert=replace(EXPERT, inner=size_of("intermediate_size")),
        mlx="mlp.switch_mlp.",
        stacked=replace(FUSED_EXPERTS, inner=size_of("intermediate_size")),
        normalised=flag("norm_topk_prob"),
    ),
)

FAMILY = Family(
    name="OLMoE",
    models="OLMoE-1B-7B",
    architectures=("OlmoeForCausalLM",),
    gguf_arch="olmoe",
    rules=NORMS + PROJECTIONS + QK_NORMS + ROUTED + ENDS,
    keys=base_keys,
    defaults=DEFAULTS,
    prepare=prepare,
    dimensions=dimensions,
    rope_kinds=ROPE_KINDS,
    forward=FORWARD,
    traits=Traits(expert_weights_summed_to_one=False),
)
