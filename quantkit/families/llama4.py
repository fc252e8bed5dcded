"""Llama 4, its text model: chunked attention, every fourth layer without rotary positions, a shared expert.

Shape of the GGUF: llama.cpp's `llama4` architecture (src/models/llama4.cpp). Its chunk, its pattern of layers and its
temperature are constants; models of 128 experts have no norm of queries and keys. The router's weight scales an
expert's input.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.experts import expert_dimensions, shared_rules
from quantkit.families.base.family import Computed, Dropped, Family, Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, optional_size, size
from quantkit.families.base.multimodal import TEXT_PREFIXES, VISION, VISION_LEFT_OUT
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.traits import Traits
from quantkit.families.llama import ENDS, llama3_rope_factors, llama_keys
from quantkit.families.qwen2 import NORMS, PLAIN_MLP, PROJECTIONS
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.parts import Form, Norm
from quantkit.forward.settings import size_of

_FEED, _TO = "model.layers.{layer}.feed_forward", "blk.{layer}"
_FAMILY = "Llama 4"
# llama.cpp's constants (load_arch_hparams), and the number of experts of a model without norms
_CHUNK, _FLOOR, _SCALE, _FULL_EVERY, _WITHOUT_NORMS = 8192, 8192, 0.1, 4, 128


def _has_experts(config: Config, layer: int) -> bool:
    return (layer + 1) % int(given(config, "interleave_moe_layer_step", default=1)) == 0


def _routed(sizes: Hyperparameters) -> list[int]:
    return [layer for layer in range(sizes.n_layer) if _has_experts(sizes.config, layer)]


def _dense(sizes: Hyperparameters) -> list[int]:
    return [layer for layer in range(sizes.n_layer) if not _has_experts(sizes.config, layer)]


def _width(sizes: Hyperparameters) -> int:
    return size(sizes.config, "intermediate_size_moe")


def _half(half: int) -> Callable[[Hyperparameters], tuple[Take, ...]]:
    """The gate (0) or the up projection (1) of each expert: columns of (experts, hidden, 2 ffn), transposed."""

    def take(sizes: Hyperparameters) -> tuple[Take, ...]:
        ffn, hidden = _width(sizes), sizes.hidden
        columns = np.arange(half * ffn, (half + 1) * ffn, dtype=np.int64)
        return tuple(
            Take(np.arange(n * hidden, (n + 1) * hidden, dtype=np.int64), columns, transposed=True)
            for n in range(sizes.n_expert)
        )

    return take


def _down(sizes: Hyperparameters) -> tuple[Take, ...]:
    """(experts, ffn, hidden), transposed."""
    ffn = _width(sizes)
    return tuple(
        Take(np.arange(n * ffn, (n + 1) * ffn, dtype=np.int64), transposed=True) for n in range(sizes.n_expert)
    )


_BOTH = (f"{_FEED}.experts.gate_up_proj", ("n_expert", "hidden", "expert_gate_up"))
RULES = (
    *NORMS,
    *PROJECTIONS,
    *(replace(rule, source=rule.source.replace(".mlp.", ".feed_forward."), layers=_dense) for rule in PLAIN_MLP),
    Rule(f"{_FEED}.router.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden"), layers=_routed),
    Rule(_BOTH[0], f"{_TO}.ffn_gate_exps.weight", _BOTH[1], take=_half(0), layers=_routed),
    Rule(_BOTH[0], f"{_TO}.ffn_up_exps.weight", _BOTH[1], take=_half(1), layers=_routed),
    Rule(
        f"{_FEED}.experts.down_proj",
        f"{_TO}.ffn_down_exps.weight",
        ("n_expert", "expert_ffn", "hidden"),
        take=_down,
        layers=_routed,
    ),
    *shared_rules(f"{_FEED}.shared_expert", layers=_routed),
    *ENDS,
)

# transformers' Llama4TextConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama4_text": {
        "attention_chunk_size": 8192,
        "attn_scale": 0.1,
        "attn_temperature_tuning": True,
        "floor_scale": 8192,
        "head_dim": 128,
        "interleave_moe_layer_step": 1,
        "max_position_embeddings": 131072,
        "num_experts_per_tok": 1,
        "num_key_value_heads": 8,
        "num_local_experts": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "use_qk_norm": True,
    }
}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    return [
        *llama_keys(arch, sizes),
        Key(f"{arch}.interleave_moe_layer_step", "u32", size(sizes.config, "interleave_moe_layer_step")),
        Key(f"{arch}.expert_feed_forward_length", "u32", _width(sizes)),
    ]


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    n_layer, experts = size(config, "num_hidden_layers"), size(config, "num_local_experts")
    used, step = size(config, "num_experts_per_tok"), size(config, "interleave_moe_layer_step")
    only(config, "hidden_act", *SILU, family=_FAMILY)
    only(config, "attention_bias", False, family=_FAMILY)
    only(config, "attention_chunk_size", _CHUNK, family=_FAMILY)
    only(config, "attn_temperature_tuning", True, 4, family=_FAMILY)
    only(config, "floor_scale", _FLOOR, family=_FAMILY)
    only(config, "attn_scale", _SCALE, family=_FAMILY)
    only(config, "use_qk_norm", experts != _WITHOUT_NORMS, family=f"{_FAMILY} of {experts} experts")
    only(config, "no_rope_layer_interval", _FULL_EVERY, family=_FAMILY)
    rotated = [(layer + 1) % _FULL_EVERY != 0 for layer in range(n_layer)]
    if config.get("no_rope_layers"):
        only(config, "no_rope_layers", [int(turns) for turns in rotated], family=_FAMILY)
    only(
        config,
        "layer_types",
        ["chunked_attention" if turns else "full_attention" for turns in rotated],
        family=_FAMILY,
    )
    only(config, "moe_layers", list(range(step - 1, n_layer, step)), family=_FAMILY)
    if used > experts:
        raise CheckpointError(f"config.json: num_experts_per_tok {used} is more than num_local_experts {experts}")
    if step > n_layer:
        raise UnsupportedError(
            f"config.json: interleave_moe_layer_step {step} leaves {n_layer} layers without experts, but llama.cpp runs"
            f" {_FAMILY} only with experts"
        )
    width = size(config, "intermediate_size")
    dense = optional_size(config, "intermediate_size_mlp") or width
    return {**config, "intermediate_size_moe": width, "intermediate_size": dense}


def _turns(config: Config, layer: int) -> bool:
    """Whether a layer has rotary positions."""
    stated = config.get("no_rope_layers")
    return bool(stated[layer]) if stated else (layer + 1) % _FULL_EVERY != 0


def _chunk(config: Config, layer: int) -> int | None:
    return config.get("attention_chunk_size", _CHUNK) if _turns(config, layer) else None


def _late_queries(config: Config, layer: int) -> tuple[float, int, int] | None:
    if _turns(config, layer) or not given(config, "attn_temperature_tuning", default=True):
        return None
    return float(given(config, "attn_scale", default=_SCALE)), int(given(config, "floor_scale", default=_FLOOR)), 1


_EXPERT_WIDTH = size_of("intermediate_size_moe", "intermediate_size")
FORWARD = Architecture(
    attention=Attention(
        pairs="neighbours",
        norms=("qk_norm", "qk_norm"),
        has_norms=lambda config: bool(given(config, "use_qk_norm", default=True)),
        norm=Norm(weighted=False),
        norms_after_rope=True,
        normed_layers=_turns,
        rope=lambda config, layer: config if _turns(config, layer) else None,
        chunk=_chunk,
        late_queries=_late_queries,
    ),
    feed=FeedForward(at="feed_forward.", inner=size_of("intermediate_size_mlp", "intermediate_size")),
    experts=Experts(
        router="feed_forward.router",
        stacked=FeedForward(
            at="feed_forward.experts.", fused="gate_up_proj", form=Form("", "_bias", turned=True), inner=_EXPERT_WIDTH
        ),
        score="sigmoid",
        normalised=lambda _: False,
        weighted_input=True,
        shared=FeedForward(at="feed_forward.shared_expert.", inner=_EXPERT_WIDTH),
        layers=_has_experts,
    ),
)

FAMILY = Family(
    name="Llama 4",
    models="Llama 4 Scout and Maverick, text only",
    architectures=("Llama4ForConditionalGeneration", "Llama4ForCausalLM"),
    gguf_arch="llama4",
    rules=RULES,
    keys=_keys,
    computed=(Computed("rope_freqs.weight", llama3_rope_factors),),
    defaults=DEFAULTS,
    prepare=_prepare,
    rename=TEXT_PREFIXES,
    dropped=(Dropped(VISION, VISION_LEFT_OUT),),
    dimensions=lambda sizes: expert_dimensions(_width(sizes), _width(sizes)),
    rope_kinds=("default", "llama3"),
    text_models={"Llama4ForConditionalGeneration": ("Llama4ForCausalLM", "llama4_text")},
    forward={"Llama4ForCausalLM": FORWARD},
    traits=Traits(
        sliding_every=_FULL_EVERY,
        default_window=_CHUNK,
        expert_weights_summed_to_one=False,
        weighted_input=True,
        late_queries=True,
    ),
)
