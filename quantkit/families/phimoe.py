"""Phi-3.5-MoE and Phi-mini-MoE: LayerNorms, biases, two rope tables, and two experts chosen by SparseMixer.

Shape of the GGUF: llama.cpp's `phimoe` architecture (src/models/phimoe.cpp), which runs the graph of Phi-3 and so does
not compute quite the same.
"""

from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.experts import expert_dimensions, expert_rules
from quantkit.families.base.family import Computed, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, size
from quantkit.families.base.refusals import SILU, only, window_ignored
from quantkit.families.phi3 import keys as phi3_keys
from quantkit.families.phi3 import table
from quantkit.families.qwen2 import BIASES, PROJECTIONS
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.parts import Form
from quantkit.forward.settings import LAYER_NORM, every_layer

_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_MOE = f"{_AT}.block_sparse_moe"
_FAMILY = "Phi-MoE"
_NORMS = (
    (f"{_AT}.input_layernorm", f"{_TO}.attn_norm"),
    (f"{_AT}.post_attention_layernorm", f"{_TO}.ffn_norm"),
    ("model.norm", "output_norm"),
)

RULES = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("vocab", "hidden")),
    *(
        Rule(f"{source}.{kind}", f"{target}.{kind}", ("hidden",))
        for source, target in _NORMS
        for kind in ("weight", "bias")
    ),
    *PROJECTIONS,
    *BIASES,
    Rule(f"{_AT}.self_attn.o_proj.bias", f"{_TO}.attn_output.bias", ("hidden",)),
    Rule(f"{_MOE}.gate.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden")),
    *expert_rules(f"{_MOE}.experts", names=("w1", "w3", "w2"), width=lambda sizes: sizes.ffn),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden")),
    Rule("lm_head.bias", "output.bias", ("vocab",)),
)

# The names of transformers 5's modules.
RENAME = ((r"\.mlp\.router\.", ".block_sparse_moe.gate."), (r"\.mlp\.(?=experts\.)", ".block_sparse_moe."))

# transformers' PhimoeConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "phimoe": {
        "attention_bias": False,
        "hidden_act": "silu",
        "lm_head_bias": False,
        "max_position_embeddings": 131072,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 8,
        "num_local_experts": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "router_jitter_noise": 0.01,
        "tie_word_embeddings": False,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family=_FAMILY)
    only(config, "head_dim", size(config, "hidden_size") // size(config, "num_attention_heads"), family=_FAMILY)
    only(config, "attention_bias", True, family=_FAMILY)
    only(config, "lm_head_bias", True, family=_FAMILY)
    only(config, "num_experts_per_tok", 2, family=_FAMILY)
    only(config, "tie_word_embeddings", False, family=_FAMILY)
    if size(config, "num_local_experts") < 2:
        raise CheckpointError("config.json: num_experts_per_tok 2 is more than num_local_experts 1")
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, dict) or (rope.get("rope_type") or rope.get("type")) == "default":
        # llama.cpp's converter takes the context that the short table serves from the scaling
        config.setdefault("original_max_position_embeddings", size(config, "max_position_embeddings"))
    return config


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    return [
        *phi3_keys(arch, sizes),
        Key(f"{arch}.expert_used_count", "u32", sizes.n_expert_used),
        Key(f"{arch}.expert_count", "u32", sizes.n_expert),
    ]


FORWARD = Architecture(
    norm=LAYER_NORM,
    attention=Attention(window=every_layer),
    experts=Experts(
        router="block_sparse_moe.gate",
        expert=FeedForward(at="block_sparse_moe.experts.{}.", gate="w1", up="w3", down="w2"),
        stacked=FeedForward(at="block_sparse_moe.experts.", fused="gate_up_proj", form=Form(weight="", bias="_bias")),
        score="sparse_mixer",
    ),
    unpacked=lambda _: "transformers and GPTQModel have other names for Phi-MoE's experts than the checkpoint",
)

FAMILY = Family(
    name=_FAMILY,
    models="Phi-3.5-MoE, Phi-mini-MoE, Phi-tiny-MoE",
    architectures=("PhiMoEForCausalLM", "PhimoeForCausalLM"),
    gguf_arch="phimoe",
    rules=RULES,
    keys=_keys,
    computed=(
        Computed("rope_factors_long.weight", table("long_factor")),
        Computed("rope_factors_short.weight", table("short_factor")),
    ),
    defaults=DEFAULTS,
    prepare=_prepare,
    rename=RENAME,
    dimensions=lambda sizes: expert_dimensions(sizes.ffn),
    rope_kinds=("default", "longrope"),
    cautions=window_ignored,
    graph_differs=(
        "llama.cpp runs Phi-MoE with RMS norms for LayerNorms, with expert weights that sum to one for SparseMixer's"
        " weights, and without short_mscale and long_mscale; so outputs of the GGUF differ from the model's"
    ),
    # training
    no_effect=("input_jitter_noise",),
    forward=FORWARD,
)
