"""Mixtral: Llama's attention with a router over experts. llama.cpp keeps it under the `llama` architecture."""

from quantkit.families.base.experts import expert_dimensions, expert_rules
from quantkit.families.base.family import Computed, Family, Rule
from quantkit.families.base.refusals import window_ignored
from quantkit.families.llama import ATTENTION, ENDS, llama3_rope_factors, llama_keys, prepare
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.parts import Form
from quantkit.forward.settings import every_layer
from quantkit.tokenizer.roles import LLAMA_ROLES

_MOE = "model.layers.{layer}.block_sparse_moe"

EXPERTS = (
    Rule(f"{_MOE}.gate.weight", "blk.{layer}.ffn_gate_inp.weight", ("n_expert", "hidden")),
    *expert_rules(f"{_MOE}.experts", names=("w1", "w3", "w2"), width=lambda sizes: sizes.ffn),
)

# The names of transformers 5's modules.
RENAME = ((r"\.mlp\.(?=gate\.|experts\.)", ".block_sparse_moe."),)

# transformers' MixtralConfig.
DEFAULTS = {
    "mixtral": {
        "max_position_embeddings": 131072,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
    }
}

FORWARD = Architecture(
    attention=Attention(window=every_layer),
    experts=Experts(
        router="block_sparse_moe.gate",
        expert=FeedForward(at="block_sparse_moe.experts.{}.", gate="w1", up="w3", down="w2"),
        mlx="block_sparse_moe.switch_mlp.",
        stacked=FeedForward(at="block_sparse_moe.experts.", fused="gate_up_proj", form=Form(weight="", bias="_bias")),
    ),
)

FAMILY = Family(
    name="Mixtral",
    models="Mixtral 8x7B/8x22B, Huozi 3",
    architectures=("MixtralForCausalLM",),
    gguf_arch="llama",
    rules=ATTENTION + EXPERTS + ENDS,
    keys=llama_keys,
    computed=(Computed("rope_freqs.weight", llama3_rope_factors),),
    defaults=DEFAULTS,
    prepare=prepare,
    rename=RENAME,
    dimensions=lambda sizes: expert_dimensions(sizes.ffn),
    cautions=window_ignored,
    forward=FORWARD,
    token_roles=LLAMA_ROLES,
)
