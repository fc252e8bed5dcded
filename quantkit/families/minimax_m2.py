"""MiniMax M2, M2.1 and M2.5: one norm over all heads, half of a head rotated, sigmoid scores plus a bias.

Shape of the GGUF: llama.cpp's `minimax-m2` architecture (src/models/minimax-m2.cpp): every layer has experts, and
the output matrix is not the embedding.
"""

from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.experts import expert_dimensions, expert_rules
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, optional_size, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import NORMS, PROJECTIONS, ROPE_KINDS
from quantkit.forward.config_keys import Config, given, head_dim, partial_rotary
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.parts import Form
from quantkit.forward.settings import HEAD_NORMS

_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_MOE = f"{_AT}.block_sparse_moe"

RULES = (
    *NORMS,
    *PROJECTIONS,
    Rule(f"{_AT}.self_attn.q_norm.weight", f"{_TO}.attn_q_norm.weight", ("q",)),
    Rule(f"{_AT}.self_attn.k_norm.weight", f"{_TO}.attn_k_norm.weight", ("kv",)),
    Rule(f"{_MOE}.gate.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden")),
    Rule(f"{_MOE}.e_score_correction_bias", f"{_TO}.exp_probs_b.bias", ("n_expert",)),
    *expert_rules(f"{_MOE}.experts", names=("w1", "w3", "w2"), width=lambda sizes: sizes.ffn),
    *ENDS,
)

# The names of transformers 5's modules.
RENAME = ((r"\.mlp\.(?=gate\.|experts\.|e_score)", ".block_sparse_moe."),)

# transformers' MiniMaxM2Config.
DEFAULTS: dict[str, dict[str, Any]] = {
    "minimax_m2": {
        "head_dim": 128,
        "max_position_embeddings": 196608,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 8,
        "num_local_experts": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5000000.0,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
    }
}


def rotary(config: Config) -> int:
    """Number of rotated values of a head: `rotary_dim`, or the fraction that config.json gives."""
    return int(given(config, "rotary_dim", default=partial_rotary(config)))


def check_rotary(config: Config) -> None:
    """Raises CheckpointError if config.json states an odd number of rotated values, or more than a head has."""
    rotated = optional_size(config, "rotary_dim")
    if rotated is not None and (rotated % 2 or rotated > head_dim(config)):
        raise CheckpointError(
            f"config.json: rotary_dim {rotated} must be even and at most head_dim {head_dim(config)}; correct it"
        )


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    return [
        *base_keys(arch, sizes),
        Key(f"{arch}.expert_feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.rope.dimension_count", "u32", rotary(sizes.config)),
    ]


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    family = "MiniMax M2"
    only(config, "hidden_act", *SILU, family=family)
    only(config, "scoring_func", "sigmoid", family=family)
    only(config, "tie_word_embeddings", False, family=family)
    only(config, "use_qk_norm", True, family=family)
    only(config, "qk_norm_type", "per_layer", family=family)
    only(config, "use_routing_bias", True, family=family)
    only(config, "shared_intermediate_size", 0, family=family)
    only(config, "attn_type_list", [1] * size(config, "num_hidden_layers"), family=family)
    plain_yarn(config, family)
    experts, used = optional_size(config, "num_local_experts") or 0, size(config, "num_experts_per_tok")
    if used > experts:
        raise CheckpointError(f"config.json: num_experts_per_tok {used} is more than num_local_experts {experts}")
    check_rotary(config)
    return config


FORWARD = Architecture(
    attention=Attention(norms=HEAD_NORMS, normed="all", rotary=rotary),
    experts=Experts(
        router="block_sparse_moe.gate",
        expert=FeedForward(at="block_sparse_moe.experts.{}.", gate="w1", up="w3", down="w2"),
        mlx="block_sparse_moe.switch_mlp.",
        stacked=FeedForward(at="block_sparse_moe.experts.", fused="gate_up_proj", form=Form(weight="", bias="_bias")),
        score="sigmoid",
        correction="block_sparse_moe.e_score_correction_bias",
    ),
)

FAMILY = Family(
    name="MiniMax M2",
    models="MiniMax-M2, M2.1, M2.5",
    architectures=("MiniMaxM2ForCausalLM",),
    gguf_arch="minimax-m2",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    rename=RENAME,
    dimensions=lambda sizes: expert_dimensions(sizes.ffn),
    rope_kinds=ROPE_KINDS,
    forward=FORWARD,
)
