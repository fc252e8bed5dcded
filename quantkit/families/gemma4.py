"""Gemma 4, its text model. Global layers have wider heads than sliding ones, values are normed, norms add nothing.

Shape of the GGUF: llama.cpp's `gemma4` architecture (src/models/gemma4.cpp). By size: per-layer embeddings and layers
that use the keys and values of an earlier one (E2B, E4B); global layers whose values are their keys (12B, 31B,
26B-A4B); experts beside the feed-forward (26B-A4B). Rope of global layers turns the first quarter of a head's pairs
("proportional"): a tensor of divisors stops the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.family import Computed, Dropped, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.multimodal import TEXT_PREFIXES, TOWERS_LEFT_OUT, VISION, VISION_LEFT_OUT
from quantkit.families.base.refusals import GELU, only
from quantkit.families.base.sliding import sliding_layers
from quantkit.families.base.traits import Traits
from quantkit.families.gemma3 import read_local_rope
from quantkit.families.gemma4_vision import PROJECTOR
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import Architecture, Beside, Experts, FeedForward, LayerInputs
from quantkit.forward.mixers import Attention
from quantkit.forward.parts import Form, Norm
from quantkit.forward.settings import HEAD_NORMS, local_rope, size_of, slides, window
from quantkit.tokenizer.roles import RawBpe, SpacePrefix, TokenRoles

# transformers takes this one where config.json has no layer_types.
_PATTERN = 6
# Divides the frequency of a pair that does not rotate, as llama.cpp's converter has it.
_STILL = 1e30
_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
}

# The marks of thoughts and tool calls.
_VISIBLE = (
    *("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>"),
    *("<|tool_response>", "<tool_response|>", '<|"|>'),
)

# transformers' Gemma4TextConfig.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "rope_parameters": _ROPE,
    "sliding_window": 512,
    "vocab_size_per_layer_input": 262144,
    "hidden_size_per_layer_input": 256,
    "num_kv_shared_layers": 0,
}
# transformers' Gemma4UnifiedTextConfig.
_UNIFIED_DEFAULTS = {
    **{key: value for key, value in _DEFAULTS.items() if "per_layer" not in key},
    "max_position_embeddings": 262144,
    "sliding_window": 1024,
}


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """The sizes under their usual names; refuse what llama.cpp's graph has built in otherwise."""
    only(config, "hidden_activation", *GELU, family="Gemma 4")
    only(config, "attention_bias", False, family="Gemma 4")
    only(config, "use_bidirectional_attention", "vision", family="Gemma 4")
    config["rope_parameters"] = _checked_rope(config)
    read_local_rope(config)
    layers = sliding_layers(config, size(config, "num_hidden_layers"), _PATTERN)
    layers[-1] = False  # as transformers does
    config["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in layers]
    if not config.get("enable_moe_block"):
        config |= dict.fromkeys(("num_experts", "top_k_experts", "moe_intermediate_size"))
    else:
        config["num_experts_per_tok"] = size(config, "top_k_experts")
        size(config, "num_experts")
        size(config, "moe_intermediate_size")
    size(config, "sliding_window")
    _refuse_other_sharing(config, layers)
    _refuse_other_inputs(config)
    return config


def _checked_rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    rope = config.get("rope_parameters") or _ROPE
    kinds = ("full_attention", "sliding_attention")
    if not isinstance(rope, Mapping) or not all(isinstance(rope.get(kind), Mapping) for kind in kinds):
        raise CheckpointError(
            f"config.json: rope_parameters must have an object for {' and '.join(kinds)}, not {rope!r}"
        )
    only(rope["full_attention"], "rope_type", "proportional", family="Gemma 4's global layers")
    only(rope["full_attention"], "factor", 1, family="Gemma 4's global layers")
    only(rope["sliding_attention"], "partial_rotary_factor", 1, family="Gemma 4's sliding layers")
    share = rope["full_attention"].get("partial_rotary_factor", 1.0)
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise CheckpointError(f"config.json: partial_rotary_factor must be a number from 0 to 1, not {share!r}")
    return rope


def _refuse_other_sharing(config: Mapping[str, Any], layers: Sequence[bool]) -> None:
    """llama.cpp takes the keys and values of the last two layers before the first shared one, a sliding one first."""
    shared = optional_size(config, "num_kv_shared_layers") if config.get("num_kv_shared_layers") else 0
    first = len(layers) - (shared or 0)
    if shared and (first < 2 or list(layers[first - 2 : first]) != [True, False]):
        raise UnsupportedError(
            f"config.json: num_kv_shared_layers is {shared}; llama.cpp shares the keys and values of the two layers"
            " before (a sliding and a global one), so a GGUF cannot express this setting"
        )


def _refuse_other_inputs(config: Mapping[str, Any]) -> None:
    if not config.get("hidden_size_per_layer_input"):
        return
    size(config, "hidden_size_per_layer_input")
    rows, vocabulary = size(config, "vocab_size_per_layer_input"), size(config, "vocab_size")
    if rows != vocabulary:
        raise UnsupportedError(
            f"config.json: vocab_size_per_layer_input is {rows}, but llama.cpp runs Gemma 4 only with vocab_size"
            f" {vocabulary}; a GGUF cannot express this setting"
        )


def _slides(config: Config, layer: int) -> bool:
    last = layer == int(config["num_hidden_layers"]) - 1
    return slides(config, layer, (layer + 1) % _PATTERN != 0) and not last


def _global(config: Config, key: str, layer_key: str, default: int) -> int:
    """A size of global layers: under `key`, else as `layer_key` in the layers' settings (transformers 5)."""
    by_layer = config.get("per_layer_config")
    settings = by_layer.values() if isinstance(by_layer, Mapping) else ()
    nested = (layer.get(layer_key) for layer in settings if isinstance(layer, Mapping))
    return int(given(config, key, default=next((value for value in nested if value), default)))


def _global_heads(config: Config) -> int:
    """Number of key heads of global layers."""
    n_head_kv = int(config["num_key_value_heads"])
    if not config.get("attention_k_eq_v"):
        return n_head_kv
    return _global(config, "num_global_key_value_heads", "num_key_value_heads", n_head_kv)


def _global_head_dim(config: Config) -> int:
    return _global(config, "global_head_dim", "head_dim", 512)


def _first_shared(config: Config) -> int:
    return int(config["num_hidden_layers"]) - int(config.get("num_kv_shared_layers") or 0)


def _is_wide(config: Config, layer: int) -> bool:
    """Whether a layer's feed-forward has twice the width."""
    return bool(config.get("use_double_wide_mlp")) and layer >= _first_shared(config)


def _of_layer(config: Config, layer: int) -> Config:
    """The config of one layer."""
    layer_config = dict(config)
    if not _slides(config, layer):
        layer_config |= {"head_dim": _global_head_dim(config), "num_key_value_heads": _global_heads(config)}
    if _is_wide(config, layer):
        layer_config["intermediate_size"] = 2 * int(config["intermediate_size"])
    return layer_config


def _shared_from(config: Config, layer: int) -> int | None:
    first = _first_shared(config)
    if layer < first:
        return None
    return max(earlier for earlier in range(first) if _slides(config, earlier) == _slides(config, layer))


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    config = sizes.config
    head, inputs = _global_head_dim(config), int(config.get("hidden_size_per_layer_input") or 0)
    expert = int(config.get("moe_intermediate_size") or 0)
    return {
        "global_head_dim": head,
        "global_q": sizes.n_head * head,
        "global_kv": _global_heads(config) * head,
        "wide_ffn": 2 * sizes.ffn,
        "inputs": inputs,
        "all_inputs": inputs * sizes.n_layer,
        "expert_ffn": expert,
        "expert_gate_up": 2 * expert,
    }


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The common keys, of which some become one value per layer, and those of two kinds of layers."""
    config, by_name = sizes.config, {key.name: key for key in base_keys(arch, sizes)}
    slides = [_slides(config, layer) for layer in range(sizes.n_layer)]
    shared, head = int(config.get("num_kv_shared_layers") or 0), _global_head_dim(config)

    def add(name: str, kind: str, value: Any) -> None:
        by_name[f"{arch}.{name}"] = Key(f"{arch}.{name}", kind, value)

    # llama.cpp caps at 30 where the file has no key, and does not cap at 0
    add("final_logit_softcapping", "f32", number(config, "final_logit_softcapping") or 0.0)
    add("attention.sliding_window", "u32", size(config, "sliding_window"))
    add("attention.shared_kv_layers", "u32", shared)
    add("embedding_length_per_layer_input", "u32", int(config.get("hidden_size_per_layer_input") or 0))
    add("attention.sliding_window_pattern", "bools", slides)
    add("attention.key_length", "u32", head)
    add("attention.value_length", "u32", head)
    add("attention.key_length_swa", "u32", sizes.head_dim)
    add("attention.value_length_swa", "u32", sizes.head_dim)
    if config.get("moe_intermediate_size"):
        add("expert_feed_forward_length", "u32", size(config, "moe_intermediate_size"))
    if config.get("use_double_wide_mlp"):
        widths = [sizes.ffn * (2 if _is_wide(config, layer) else 1) for layer in range(sizes.n_layer)]
        add("feed_forward_length", "i32s", widths)
    if config.get("attention_k_eq_v"):
        heads = _global_heads(config)
        add("attention.head_count_kv", "i32s", [sizes.n_head_kv if local else heads for local in slides])
    add("rope.dimension_count", "u32", head)
    add("rope.dimension_count_swa", "u32", sizes.head_dim)
    return list(by_name.values())


def _rope_divisors(sizes: Hyperparameters) -> NDArray[np.float32]:
    """Frequency divisors of global layers, float32 (global_head_dim / 2,)."""
    head = _global_head_dim(sizes.config)
    turning = int(head * sizes.rope.get("partial_rotary_factor", 1.0) / 2)
    return np.array([1.0] * turning + [_STILL] * (head // 2 - turning), dtype=np.float32)


_AT, _TO = "model.layers.{layer}", "blk.{layer}"


def _sliding(sizes: Hyperparameters) -> list[int]:
    return [layer for layer in range(sizes.n_layer) if _slides(sizes.config, layer)]


def _full(sizes: Hyperparameters) -> list[int]:
    return [layer for layer in range(sizes.n_layer) if not _slides(sizes.config, layer)]


def _narrow(sizes: Hyperparameters) -> list[int]:
    return [layer for layer in range(sizes.n_layer) if not _is_wide(sizes.config, layer)]


def _wide(sizes: Hyperparameters) -> list[int]:
    return [layer for layer in range(sizes.n_layer) if _is_wide(sizes.config, layer)]


def _own_values(sizes: Hyperparameters, layers: Sequence[int]) -> list[int]:
    """Those of `layers` that compute keys and values."""
    return [layer for layer in layers if layer < _first_shared(sizes.config)]


def _attention(source: str, target: str, sliding: tuple[str, ...], full: tuple[str, ...]) -> tuple[Rule, Rule]:
    names = (f"{_AT}.self_attn.{source}.weight", f"{_TO}.{target}.weight")
    return Rule(*names, sliding, layers=_sliding), Rule(*names, full, layers=_full)


def _key_or_value(source: str, target: str, sliding: tuple[str, ...], full: tuple[str, ...]) -> tuple[Rule, ...]:
    """The converter keeps unused tensors of layers that share keys and values."""
    names, is_value = (f"{_AT}.self_attn.{source}.weight", f"{_TO}.{target}.weight"), source == "v_proj"

    def in_global(sizes: Hyperparameters) -> list[int]:
        return [] if is_value and sizes.config.get("attention_k_eq_v") else _own_values(sizes, _full(sizes))

    def others(sizes: Hyperparameters) -> list[int]:
        return [layer for layer in _sliding(sizes) if layer >= _first_shared(sizes.config)]

    def other_global(sizes: Hyperparameters) -> list[int]:
        return sorted(set(_full(sizes)) - set(in_global(sizes)))

    return (
        Rule(*names, sliding, layers=lambda sizes: _own_values(sizes, _sliding(sizes))),
        Rule(*names, full, layers=in_global),
        Rule(*names, sliding, layers=others, required=False),
        Rule(*names, full, layers=other_global, required=False),
    )


def _norm(source: str, target: str, width: str = "hidden", required: bool = True) -> Rule:
    return Rule(f"{_AT}.{source}.weight", f"{_TO}.{target}.weight", (width,), required=required)


def _feed(name: str) -> tuple[Rule, Rule]:
    names = (f"{_AT}.mlp.{name}_proj.weight", f"{_TO}.ffn_{name}.weight")
    shapes = [("hidden", width) if name == "down" else (width, "hidden") for width in ("ffn", "wide_ffn")]
    return Rule(*names, shapes[0], layers=_narrow), Rule(*names, shapes[1], layers=_wide)


def _has_inputs(sizes: Hyperparameters) -> bool:
    return bool(sizes.config.get("hidden_size_per_layer_input"))


def _has_experts(sizes: Hyperparameters) -> bool:
    return sizes.n_expert > 0


RULES = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule("model.norm.weight", "output_norm.weight", ("hidden",)),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), required=False, tied_to_embedding=True),
    _norm("input_layernorm", "attn_norm"),
    _norm("post_attention_layernorm", "post_attention_norm"),
    _norm("pre_feedforward_layernorm", "ffn_norm"),
    _norm("post_feedforward_layernorm", "post_ffw_norm"),
    Rule(f"{_AT}.layer_scalar", f"{_TO}.layer_output_scale.weight", ("1",)),
    *_attention("q_proj", "attn_q", ("q", "hidden"), ("global_q", "hidden")),
    *_attention("o_proj", "attn_output", ("hidden", "q"), ("hidden", "global_q")),
    *_attention("q_norm", "attn_q_norm", ("head_dim",), ("global_head_dim",)),
    *_key_or_value("k_proj", "attn_k", ("kv", "hidden"), ("global_kv", "hidden")),
    *_key_or_value("v_proj", "attn_v", ("kv", "hidden"), ("global_kv", "hidden")),
    *_key_or_value("k_norm", "attn_k_norm", ("head_dim",), ("global_head_dim",)),
    *(rule for name in ("gate", "up", "down") for rule in _feed(name)),
)
INPUTS = tuple(
    replace(rule, when=_has_inputs)
    for rule in (
        Rule("model.embed_tokens_per_layer.weight", "per_layer_token_embd.weight", ("vocab", "all_inputs")),
        Rule("model.per_layer_model_projection.weight", "per_layer_model_proj.weight", ("all_inputs", "hidden")),
        Rule("model.per_layer_projection_norm.weight", "per_layer_proj_norm.weight", ("inputs",)),
        Rule(f"{_AT}.per_layer_input_gate.weight", f"{_TO}.inp_gate.weight", ("inputs", "hidden")),
        Rule(f"{_AT}.per_layer_projection.weight", f"{_TO}.proj.weight", ("hidden", "inputs")),
        _norm("post_per_layer_input_norm", "post_norm"),
    )
)
EXPERTS = tuple(
    replace(rule, when=_has_experts)
    for rule in (
        Rule(f"{_AT}.router.proj.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden")),
        Rule(f"{_AT}.router.scale", f"{_TO}.ffn_gate_inp.scale", ("hidden",)),
        Rule(f"{_AT}.router.per_expert_scale", f"{_TO}.ffn_down_exps.scale", ("n_expert",)),
        Rule(f"{_AT}.experts.gate_up_proj", f"{_TO}.ffn_gate_up_exps.weight", ("n_expert", "expert_gate_up", "hidden")),
        Rule(f"{_AT}.experts.down_proj", f"{_TO}.ffn_down_exps.weight", ("n_expert", "hidden", "expert_ffn")),
        _norm("pre_feedforward_layernorm_2", "pre_ffw_norm_2"),
        _norm("post_feedforward_layernorm_1", "post_ffw_norm_1"),
        _norm("post_feedforward_layernorm_2", "post_ffw_norm_2"),
    )
)

FORWARD = Architecture(
    embedding_scale=lambda config: float(config["hidden_size"]) ** 0.5,
    after_attention="post_attention_layernorm",
    feed_norm="pre_feedforward_layernorm",
    after_feed="post_feedforward_layernorm",
    attention=Attention(
        norms=HEAD_NORMS,
        value_norm=Norm(weighted=False),
        keys_as_values=lambda config, layer: bool(config.get("attention_k_eq_v")) and not _slides(config, layer),
        shared_from=_shared_from,
        rotary=lambda config: int(config["head_dim"]),
        rope=local_rope(_slides),
        scale=lambda _config, _layer: 1.0,
        window=window(_slides),
    ),
    feed=FeedForward(activation=("hidden_activation",), default_activation="gelu_pytorch_tanh"),
    experts=Experts(
        router="router.proj",
        used=("top_k_experts",),
        stacked=FeedForward(
            at="experts.",
            fused="gate_up_proj",
            form=Form(weight=""),
            inner=size_of("moe_intermediate_size"),
            activation=("hidden_activation",),
            default_activation="gelu_pytorch_tanh",
        ),
        expert_scale="router.per_expert_scale",
        beside=Beside(
            norm="pre_feedforward_layernorm_2",
            after_experts="post_feedforward_layernorm_2",
            after_dense="post_feedforward_layernorm_1",
            router_scale="router.scale",
        ),
        layers=lambda config, _: bool(config.get("enable_moe_block")),
    ),
    layer_inputs=LayerInputs(width=size_of("hidden_size_per_layer_input")),
    layer_scale="layer_scalar",
    logit_softcap="final_logit_softcapping",
    tied=True,
    per_layer=_of_layer,
)

FAMILY = Family(
    name="Gemma 4",
    models="Gemma 4 E2B/E4B/12B/31B/26B-A4B",
    architectures=("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration", "Gemma4UnifiedForConditionalGeneration"),
    # transformers writes the head size of the full attention layers there once more
    no_effect=("per_layer_config",),
    gguf_arch="gemma4",
    rules=RULES + INPUTS + EXPERTS,
    keys=keys,
    computed=(Computed("rope_freqs.weight", _rope_divisors),),
    defaults={"gemma4_text": _DEFAULTS, "gemma4_unified_text": _UNIFIED_DEFAULTS},
    prepare=prepare,
    dimensions=_dimensions,
    text_models={
        "Gemma4ForConditionalGeneration": ("Gemma4ForCausalLM", "gemma4_text"),
        "Gemma4UnifiedForConditionalGeneration": ("Gemma4ForCausalLM", "gemma4_unified_text"),
    },
    rename=TEXT_PREFIXES,
    dropped=(
        Dropped(VISION, VISION_LEFT_OUT),
        Dropped(r"(model\.)?(embed_vision|vision_embedder)\..*", VISION_LEFT_OUT),
        Dropped(r"(model\.)?(audio_tower|embed_audio)\..*", TOWERS_LEFT_OUT),
    ),
    projectors={"Gemma4ForConditionalGeneration": PROJECTOR},
    rope_kinds=("proportional",),
    forward={"Gemma4ForCausalLM": FORWARD},
    traits=Traits(sliding_every=_PATTERN, scaled_embedding=True, normed_values=True, output_after_norm=True),
    token_roles=TokenRoles(raw_bpe=RawBpe("gemma4", _VISIBLE), adds={"bos": True}, space_prefix=SpacePrefix.FALSE_LAST),
)
