"""North Mini Code: Cohere 2's graph with experts after the first layers; the shared expert counts as much as the rest.

Shape of the GGUF: llama.cpp's `cohere2moe` architecture (src/models/cohere2moe.cpp). It rotates positions in layers
with a window and in dense layers.
"""

from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.experts import expert_dimensions, expert_rules, shared_rules
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.layer_kinds import layer_kinds
from quantkit.families.base.layers import nextn_keys, nextn_rules, observe_nextn
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.sliding import sliding_layers
from quantkit.families.base.traits import Traits
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import PLAIN_MLP, PROJECTIONS
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.parts import Norm
from quantkit.forward.settings import FUSED_EXPERTS, LAYER_NORM, flag, number_of, size_of, slides

_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_MLP = f"{_AT}.mlp"
_FAMILY = "Cohere 2 MoE"
_PATTERN = 4


def _n_dense(config: Config) -> int:
    """Number of dense layers, which precede the layers with experts."""
    kinds = config.get("mlp_layer_types")
    if kinds is None:
        return int(given(config, "first_k_dense_replace", default=0))
    return kinds.index("sparse") if "sparse" in kinds else len(kinds)


def _dense(sizes: Hyperparameters) -> range:
    return range(min(_n_dense(sizes.config), sizes.n_layer))


def _routed(sizes: Hyperparameters) -> range:
    return range(len(_dense(sizes)), sizes.n_layer)


def _n_shared(config: Config) -> int:
    return int(given(config, "num_shared_experts", default=0))


def _shares(sizes: Hyperparameters) -> bool:
    return _n_shared(sizes.config) > 0


_NORM = Rule(f"{_AT}.input_layernorm.weight", f"{_TO}.attn_norm.weight", ("hidden",))
_EXPERTS = (
    Rule(f"{_MLP}.gate.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden"), layers=_routed),
    *expert_rules(f"{_MLP}.experts", layers=_routed, width=lambda sizes: size(sizes.config, "intermediate_size")),
    *shared_rules(f"{_MLP}.shared_experts", layers=_routed, when=_shares),
)
RULES = (
    _NORM,
    *PROJECTIONS,
    *(replace(rule, layers=_dense) for rule in PLAIN_MLP),
    *_EXPERTS,
    *nextn_rules((_NORM, *PROJECTIONS, *_EXPERTS)),
    *ENDS,
)

# transformers' Cohere2MoeConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "cohere2_moe": {
        "attention_bias": False,
        "expert_selection_fn": "softmax",
        "head_dim": 128,
        "hidden_act": "silu",
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.0625,
        "max_position_embeddings": 8192,
        "norm_topk_prob": True,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_key_value_heads": None,
        "num_shared_experts": 0,
        "prefix_dense_sliding_window_pattern": 1,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "sliding_window_pattern": _PATTERN,
        "tie_word_embeddings": True,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph does not have, and state the kind of each layer.

    Raises:
        CheckpointError: a layer has more experts for a token than experts.
        UnsupportedError: dense layers are not the first ones.
    """
    n_layer = size(config, "num_hidden_layers")
    only(config, "hidden_act", *SILU, family=_FAMILY)
    only(config, "attention_bias", False, family=_FAMILY)
    if config.get("expert_selection_fn") == "softmax":
        only(config, "norm_topk_prob", True, family=f"{_FAMILY} with softmax")
    if _n_shared(config):
        only(config, "shared_expert_combination_strategy", "average", family=_FAMILY)
    experts, used = optional_size(config, "num_experts") or 0, size(config, "num_experts_per_tok")
    if used > experts:
        raise CheckpointError(f"config.json: num_experts_per_tok {used} is more than num_experts {experts}")
    kinds = layer_kinds(config, n_layer, ("dense", "sparse"), name="mlp_layer_types")
    dense = _n_dense(config)
    if kinds and "dense" in kinds[dense:]:
        raise UnsupportedError(
            "config.json: mlp_layer_types has a dense layer after one with experts; llama.cpp runs dense layers only"
            " before the others"
        )
    if dense:
        only(config, "prefix_dense_sliding_window_pattern", 1, family=f"{_FAMILY} with dense layers")
    sliding_layers(config, n_layer, _PATTERN)
    if config.get("layer_types") is None:
        windows = [_slides(config, layer) for layer in range(n_layer)]
        config["layer_types"] = ["sliding_attention" if window else "full_attention" for window in windows]
    return config


def _dense_width(config: Config) -> int:
    return int(given(config, "prefix_dense_intermediate_size", "intermediate_size"))


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/command_r.py)."""
    config, width = sizes.config, size(sizes.config, "intermediate_size")
    wide = f"{arch}.feed_forward_length"
    keys = [
        *(replace(key, value=_dense_width(config)) if key.name == wide else key for key in base_keys(arch, sizes)),
        Key(f"{arch}.logit_scale", "f32", number(config, "logit_scale")),
        Key(f"{arch}.attention.sliding_window", "u32", size(config, "sliding_window")),
        Key(f"{arch}.attention.sliding_window_pattern", "bools", sliding_layers(config, sizes.n_layer, _PATTERN)),
        Key(f"{arch}.vocab_size", "u32", sizes.vocab),
        Key(f"{arch}.expert_feed_forward_length", "u32", width),
        Key(f"{arch}.leading_dense_block_count", "u32", len(_dense(sizes))),
        Key(f"{arch}.expert_weights_norm", "bool", bool(config.get("norm_topk_prob"))),
    ]
    if shared := _n_shared(config):
        keys += [
            Key(f"{arch}.expert_shared_count", "u32", shared),
            Key(f"{arch}.expert_shared_feed_forward_length", "u32", width * shared),
        ]
    return [
        *keys,
        *(nextn_keys(arch, sizes) if sizes.n_draft else []),
        Key(f"{arch}.rope.dimension_count", "u32", sizes.head_dim),
        Key(f"{arch}.rope.scaling.type", "str", "none"),
    ]


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    width = size(sizes.config, "intermediate_size")
    return {
        **expert_dimensions(width, width * _n_shared(sizes.config)),
        "ffn": _dense_width(sizes.config),
        "two_hidden": 2 * sizes.hidden,
    }


def _slides(config: Config, layer: int) -> bool:
    """Whether a layer has a window; without `layer_types` no dense layer has one, and one of four others has none."""
    pattern = int(given(config, "sliding_window_pattern", default=_PATTERN))
    after = layer - _n_dense(config)
    return slides(config, layer, after >= 0 and (after + 1) % pattern != 0)


def _half_if_shared(config: Config) -> float:
    """The experts and the shared one are averaged."""
    return 0.5 if _n_shared(config) else 1.0


_WIDTH = size_of("intermediate_size")


def _forward(score: str) -> Experts:
    return Experts(
        router="mlp.gate",
        expert=FeedForward(at="mlp.experts.{}.", inner=_WIDTH),
        stacked=replace(FUSED_EXPERTS, inner=_WIDTH),
        score="sigmoid" if score == "sigmoid" else "softmax",
        normalised=flag("norm_topk_prob", True),
        scale=_half_if_shared,
        shared=FeedForward(
            at="mlp.shared_experts.",
            inner=lambda config: _n_shared(config) * _WIDTH(config),
            multipliers=lambda _: (1.0, 0.5),
        ),
        layers=lambda config, layer: layer >= _n_dense(config),
    )


def _variant(config: Config) -> dict[str, Any]:
    norm = Norm() if config.get("rms_norm_eps") is not None else LAYER_NORM
    return {"norm": norm, "experts": _forward(str(given(config, "expert_selection_fn", default="softmax")))}


FORWARD = Architecture(
    norm=LAYER_NORM,
    feed_norm=None,
    parallel=True,
    attention=Attention(
        pairs="neighbours",
        rope=lambda config, layer: config if _slides(config, layer) or layer < _n_dense(config) else None,
        window=lambda config, layer: config.get("sliding_window") if _slides(config, layer) else None,
    ),
    feed=FeedForward(inner=_dense_width),
    experts=_forward("softmax"),
    tied=True,
    logit_scale=number_of("logit_scale", 0.0625),
    variant=_variant,
)

FAMILY = Family(
    name=_FAMILY,
    models="North Mini Code 1.0",
    architectures=("Cohere2MoeForCausalLM",),
    gguf_arch="cohere2moe",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    observe=observe_nextn,
    prepare=_prepare,
    dimensions=_dimensions,
    rope_kinds=("default",),
    # rope_parameters has them
    no_effect=("rope_scaling", "rope_theta"),
    forward=FORWARD,
    traits=Traits(layer_norm=True, parallel=True, sliding_every=_PATTERN, rope_in_windows=True),
)
