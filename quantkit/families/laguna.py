"""Laguna: sigmoid routing, a softplus gate of attention's output, and layers that differ in heads, window and rope.

Shape of the GGUF: llama.cpp's `laguna` architecture (src/models/laguna.cpp), which scales rope in layers without a
window only.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.experts import expert_dimensions, expert_rules, expert_width, shared_rules
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.layer_kinds import layer_kinds
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.base.traits import Traits
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import NORMS, PLAIN_MLP, PROJECTIONS
from quantkit.families.qwen3 import HEAD_NORM_RULES
from quantkit.forward.config_keys import Config
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import EXPERT, FUSED_EXPERTS, HEAD_NORMS, number_of, size_of

_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_MLP = f"{_AT}.mlp"
_FAMILY = "Laguna"
_FULL, _SLIDING = "full_attention", "sliding_attention"
# llama.cpp's pattern for a file without the key: the first of four layers has no window.
_PATTERN = 4
_GATES = {"per-head": True, "per_head": True, "per-element": False, "per_element": False}


def _dense(sizes: Hyperparameters) -> range:
    return range(_n_dense(sizes.config))


def _routed(sizes: Hyperparameters) -> range:
    return range(_n_dense(sizes.config), sizes.n_layer)


RULES = (
    *NORMS,
    *PROJECTIONS,
    *HEAD_NORM_RULES,
    Rule(f"{_AT}.self_attn.g_proj.weight", f"{_TO}.attn_gate.weight", ("gate", "hidden")),
    *(replace(rule, layers=_dense) for rule in PLAIN_MLP),
    Rule(f"{_MLP}.gate.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden"), layers=_routed),
    Rule(f"{_MLP}.experts.e_score_correction_bias", f"{_TO}.exp_probs_b.bias", ("n_expert",), layers=_routed),
    *expert_rules(f"{_MLP}.experts", layers=_routed),
    *shared_rules(f"{_MLP}.shared_expert", layers=_routed),
    *ENDS,
)

# The names of transformers 5's modules.
RENAME = (
    (r"\.mlp\.gate\.(?=e_score_correction_bias$)", ".mlp.experts."),
    (r"\.mlp\.shared_experts\.", ".mlp.shared_expert."),
)

# transformers' LagunaConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "laguna": {
        "gating": True,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "moe_intermediate_size": 512,
        "moe_routed_scaling_factor": 1.0,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "shared_expert_intermediate_size": 512,
        "sliding_window": 512,
        "tie_word_embeddings": False,
    }
}
_ROPE = {
    _FULL: {"rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 0.5},
    _SLIDING: {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
}


def _heads(config: Config, layer: int) -> int:
    heads = config.get("num_attention_heads_per_layer") or ()
    return int(heads[layer] if heads else config["num_attention_heads"])


def _kind(config: Config, layer: int) -> str:
    kinds = config.get("layer_types")
    return str(kinds[layer]) if kinds else _FULL


def _n_dense(config: Config) -> int:
    """Number of dense layers, which precede the layers with experts."""
    kinds = config.get("mlp_layer_types")
    return kinds.index("sparse") if kinds else 1


def _gates_heads(config: Config) -> bool:
    """Whether the gate has one number for each head, not one for each value."""
    gating = config.get("gating")
    return gating is True or _GATES[str(gating)]


def _rope(config: Config, kind: str) -> Mapping[str, Any]:
    rope = config.get("rope_parameters") or _ROPE
    settings = rope.get(kind, rope if "rope_theta" in rope else _ROPE[kind])
    return settings if isinstance(settings, Mapping) else {}


def _rotated(config: Config, kind: str) -> int:
    share = number(_rope(config, kind), "partial_rotary_factor")
    return int(size(config, "head_dim") * (1.0 if share is None else share))


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    layers = size(config, "num_hidden_layers")
    only(config, "hidden_act", *SILU, family=_FAMILY)
    only(config, "attention_bias", False, family=_FAMILY)
    only(config, "moe_apply_router_weight_on_input", False, family=_FAMILY)
    only(config, "moe_router_logit_softcapping", 0, family=_FAMILY)
    only(config, "norm_topk_prob", True, family=_FAMILY)
    gating = config.get("gating")
    if gating is not True and gating not in _GATES:
        raise UnsupportedError(
            f"config.json: gating is {gating!r}, but llama.cpp runs {_FAMILY} only with per-head or per-element"
        )
    layer_kinds(config, layers, (_FULL, _SLIDING))
    feeds = layer_kinds(config, layers, ("dense", "sparse"), name="mlp_layer_types") or ["dense", *["sparse"] * layers]
    if "sparse" not in feeds or "dense" in feeds[feeds.index("sparse") :]:
        raise UnsupportedError(
            f"config.json: mlp_layer_types has dense layers after sparse ones or no sparse layer, but llama.cpp runs"
            f" {_FAMILY} only with dense layers first"
        )
    _check_heads(config, layers)
    rope = config.get("rope_parameters")
    if isinstance(rope, Mapping) and "rope_theta" not in rope and not isinstance(rope.get(_FULL), Mapping):
        raise CheckpointError(f"config.json: rope_parameters has no {_FULL}; add the settings of these layers")
    _check_scaling(config)
    used, experts = size(config, "num_experts_per_tok"), size(config, "num_experts")
    if used > experts:
        raise CheckpointError(f"config.json: num_experts_per_tok {used} is more than num_experts {experts}")
    return {**config, "rope_parameters": {kind: dict(_rope(config, kind)) for kind in _ROPE}}


def _check_heads(config: Mapping[str, Any], layers: int) -> None:
    heads, kv = config.get("num_attention_heads_per_layer"), size(config, "num_key_value_heads")
    if heads is None:
        return
    if not isinstance(heads, list) or len(heads) != layers or not all(type(count) is int for count in heads):
        raise CheckpointError(f"config.json: num_attention_heads_per_layer must list {layers} numbers, not {heads!r}")
    for layer, count in enumerate(heads):
        if count <= 0 or count % kv:
            raise CheckpointError(
                f"config.json: layer {layer} has {count} attention heads, which num_key_value_heads {kv} does not"
                " divide; correct one of the sizes"
            )


def _check_scaling(config: Mapping[str, Any]) -> None:
    """Refuse scaled layers with a window, and a scaling of the others that llama.cpp does not read from the file."""
    kind = _rope(config, _SLIDING).get("rope_type", "default")
    if kind != "default":
        raise UnsupportedError(f"config.json: sliding layers have rope scaling {kind!r}; llama.cpp scales other layers")
    # llama.cpp takes its own ends of the ramp; see _cautions
    full = {key: value for key, value in _rope(config, _FULL).items() if key not in ("beta_fast", "beta_slow")}
    plain_yarn({"rope_parameters": full}, _FAMILY)


def _cautions(sizes: Hyperparameters) -> list[str]:
    rope = sizes.rope
    ends = tuple(rope.get(name) or built_in for name, built_in in (("beta_fast", 32), ("beta_slow", 1)))
    if rope["rope_type"] != "yarn" or ends == (32, 1):
        return []
    return [
        "llama.cpp takes beta_fast 32 and beta_slow 1 for YaRN of this model; config.json has"
        f" {ends[0]:g} and {ends[1]:g}, so outputs differ slightly"
    ]


def _layer_dimensions(sizes: Hyperparameters, layer: int) -> dict[str, int]:
    heads = _heads(sizes.config, layer)
    values = heads * sizes.head_dim
    return {"q": values, "gate": heads if _gates_heads(sizes.config) else values}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/laguna.py), with the layers that have a window if they differ.

    llama.cpp gives every layer but the first of four a window where the file has one.
    """
    config = sizes.config
    heads = [_heads(config, layer) for layer in range(sizes.n_layer)]
    slides = [_kind(config, layer) == _SLIDING for layer in range(sizes.n_layer)]
    window = (optional_size(config, "sliding_window") or 0) if any(slides) else 0
    is_unusual = slides != [layer % _PATTERN != 0 for layer in range(sizes.n_layer)]
    return [
        *(Key(key.name, "i32s", heads) if key.name.endswith(".head_count") else key for key in base_keys(arch, sizes)),
        Key(f"{arch}.vocab_size", "u32", sizes.vocab),
        *([Key(f"{arch}.attention.sliding_window", "u32", window)] if window else []),
        Key(f"{arch}.expert_feed_forward_length", "u32", expert_width(sizes)),
        Key(f"{arch}.expert_shared_feed_forward_length", "u32", size(config, "shared_expert_intermediate_size")),
        Key(f"{arch}.expert_weights_norm", "bool", True),
        Key(f"{arch}.expert_weights_scale", "f32", number(config, "moe_routed_scaling_factor")),
        Key(f"{arch}.expert_gating_func", "u32", 2),
        Key(f"{arch}.leading_dense_block_count", "u32", _n_dense(config)),
        Key(f"{arch}.rope.dimension_count", "u32", _rotated(config, _FULL)),
        Key(f"{arch}.rope.dimension_count_swa", "u32", _rotated(config, _SLIDING)),
        *([Key(f"{arch}.attention.sliding_window_pattern", "bools", slides)] if window and is_unusual else []),
    ]


def _per_layer(config: Config, layer: int) -> Config:
    rope = dict(_rope(config, _kind(config, layer)))
    return {**config, "num_attention_heads": _heads(config, layer), "rope_parameters": rope, "rope_scaling": None}


FORWARD = Architecture(
    attention=Attention(
        norms=HEAD_NORMS,
        gate="g_proj",
        gate_per_head=_gates_heads,
        gate_function="softplus",
        window=lambda config, layer: config.get("sliding_window") if _kind(config, layer) == _SLIDING else None,
    ),
    experts=Experts(
        router="mlp.gate",
        expert=EXPERT,
        stacked=FUSED_EXPERTS,
        score="sigmoid",
        correction="mlp.experts.e_score_correction_bias",
        scale=number_of("moe_routed_scaling_factor"),
        shared=FeedForward(at="mlp.shared_expert.", inner=size_of("shared_expert_intermediate_size")),
        layers=lambda config, layer: layer >= _n_dense(config),
    ),
    per_layer=_per_layer,
    unpacked=lambda _: "transformers and GPTQModel have other names for Laguna's shared expert than the checkpoint",
)

FAMILY = Family(
    name=_FAMILY,
    models="Laguna XS.2, S-2.1, M.1",
    architectures=("LagunaForCausalLM",),
    gguf_arch="laguna",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    rename=RENAME,
    dimensions=lambda sizes: expert_dimensions(
        expert_width(sizes), size(sizes.config, "shared_expert_intermediate_size")
    ),
    layer_dimensions=_layer_dimensions,
    rope_kinds=("default", "yarn"),
    cautions=_cautions,
    forward=FORWARD,
    traits=Traits(sliding_every=_PATTERN, full_first=True),
)
