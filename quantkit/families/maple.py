"""Maple: layers with a window and rotary positions between layers with neither, and experts with limited gates.

Shape of the GGUF: llama.cpp's `maple` architecture (src/models/maple.cpp). The limit of gate and up is always 7.
transformers has no class; the sources are llama.cpp's graph and converter.
"""

from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.experts import expert_dimensions, expert_rules, expert_width
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.layer_kinds import layer_kinds
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.traits import Traits
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import NORMS, PROJECTIONS
from quantkit.families.qwen3 import HEAD_NORM_RULES
from quantkit.forward.config_keys import Config, partial_rotary
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import HEAD_NORMS, size_of

_FAMILY = "Maple"
_SLIDING, _FULL = "sliding_attention", "full_attention"
_LIMIT = 7.0


def _slides(config: Config, layer: int) -> bool:
    return bool(config["layer_types"][layer] == _SLIDING)


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph does not have.

    Raises:
        CheckpointError: a setting is missing, or a token has more experts than there are.
        UnsupportedError: a setting that llama.cpp does not run.
    """
    only(config, "hidden_act", *SILU, family=_FAMILY)
    only(config, "nope_on_global_attention", True, family=_FAMILY)
    if config.get("nope_on_global_attention") is None:
        raise CheckpointError("config.json has no nope_on_global_attention; add it, it must be true")
    only(config, "norm_topk_prob", True, family=_FAMILY)
    only(config, "num_shared_experts", 0, family=_FAMILY)
    for name in ("attention_bias", "tie_word_embeddings"):
        only(config, name, False, family=_FAMILY)
    n_layer = size(config, "num_hidden_layers")
    if layer_kinds(config, n_layer, (_SLIDING, _FULL)) is None:
        raise CheckpointError(f"config.json has no layer_types; add the kinds of {n_layer} layers")
    size(config, "sliding_window")
    used, experts = size(config, "num_experts_per_tok"), size(config, "num_experts")
    if used > experts:
        raise CheckpointError(f"config.json: num_experts_per_tok {used} is more than num_experts {experts}")
    return config


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/maple.py)."""
    config, layers = sizes.config, range(sizes.n_layer)
    rotated = partial_rotary({"head_dim": sizes.head_dim, **config})
    return [
        *base_keys(arch, sizes),
        Key(f"{arch}.vocab_size", "u32", sizes.vocab),
        Key(f"{arch}.rope.dimension_count", "u32", rotated),
        Key(f"{arch}.attention.sliding_window", "u32", size(config, "sliding_window")),
        Key(f"{arch}.attention.sliding_window_pattern", "bools", [_slides(config, layer) for layer in layers]),
        Key(f"{arch}.expert_feed_forward_length", "u32", expert_width(sizes)),
        Key(f"{arch}.swiglu_clamp_exp", "f32s", [_LIMIT for _ in layers]),
    ]


FORWARD = Architecture(
    attention=Attention(
        norms=HEAD_NORMS,
        rope=lambda config, layer: config if _slides(config, layer) else None,
        window=lambda config, layer: int(config["sliding_window"]) if _slides(config, layer) else None,
    ),
    experts=Experts(
        router="mlp.gate",
        expert=FeedForward(at="mlp.experts.{}.", inner=size_of("moe_intermediate_size"), limit_before="expert_limit"),
    ),
    per_layer=lambda config, _: {**config, "expert_limit": _LIMIT},
    unpacked=lambda _: "transformers has no class of Maple",
    not_mlx="mlx-lm has not been compared with it",
)

FAMILY = Family(
    name=_FAMILY,
    models="Maple preview 20B",
    architectures=("MapleForCausalLM",),
    gguf_arch="maple",
    rules=(
        *NORMS,
        *PROJECTIONS,
        *HEAD_NORM_RULES,
        Rule("model.layers.{layer}.mlp.gate.weight", "blk.{layer}.ffn_gate_inp.weight", ("n_expert", "hidden")),
        *expert_rules("model.layers.{layer}.mlp.experts"),
        *ENDS,
    ),
    keys=_keys,
    prepare=_prepare,
    dimensions=lambda sizes: expert_dimensions(expert_width(sizes)),
    rope_kinds=("default",),
    forward=FORWARD,
    traits=Traits(sliding_every=4, rope_in_windows=True),
)
