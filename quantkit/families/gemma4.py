"""Gemma 4, its text model. Global layers have wider heads than sliding ones, values are normed, norms add nothing.

Shape of the GGUF: llama.cpp's `gemma4` architecture (src/models/gemma4.cpp). By size: per-layer embeddings and layers
that use the keys and values of an earlier one (E2B, E4B); global layers whose values are their keys (12B, 31B,
26B-A4B); experts beside the feed-forward (26B-A4B). Rope of global layers turns the first quarter of a head's pairs
("proportional"): a tensor of divisors stops the others.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.families.base.family import Computed, Dropped, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.multimodal import TEXT_PREFIXES, TOWERS_LEFT_OUT, VISION, VISION_LEFT_OUT
from quantkit.families.base.traits import Traits
from quantkit.families.gemma4_config import (
    DEFAULTS,
    PATTERN,
    UNIFIED_DEFAULTS,
    first_shared,
    global_head_dim,
    global_heads,
    is_sliding,
    is_wide,
    of_layer,
    prepare,
    shared_from,
)
from quantkit.families.gemma4_vision import PROJECTOR
from quantkit.forward.description import Architecture, Beside, Experts, FeedForward, LayerInputs
from quantkit.forward.mixers import Attention
from quantkit.forward.parts import Form, Norm
from quantkit.forward.settings import HEAD_NORMS, local_rope, size_of, window
from quantkit.tokenizer.roles import RawBpe, SpacePrefix, TokenRoles

# Divides the frequency of a pair that does not rotate, as llama.cpp's converter has it.
_STILL = 1e30

# The marks of thoughts and tool calls.
_VISIBLE = (
    *("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>"),
    *("<|tool_response>", "<tool_response|>", '<|"|>'),
)


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    config = sizes.config
    head, inputs = global_head_dim(config), int(config.get("hidden_size_per_layer_input") or 0)
    expert = int(config.get("moe_intermediate_size") or 0)
    return {
        "global_head_dim": head,
        "global_q": sizes.n_head * head,
        "global_kv": global_heads(config) * head,
        "wide_ffn": 2 * sizes.ffn,
        "inputs": inputs,
        "all_inputs": inputs * sizes.n_layer,
        "expert_ffn": expert,
        "expert_gate_up": 2 * expert,
    }


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The common keys, of which some become one value per layer, and those of two kinds of layers."""
    config, by_name = sizes.config, {key.name: key for key in base_keys(arch, sizes)}
    slides = [is_sliding(config, layer) for layer in range(sizes.n_layer)]
    shared, head = int(config.get("num_kv_shared_layers") or 0), global_head_dim(config)

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
        widths = [sizes.ffn * (2 if is_wide(config, layer) else 1) for layer in range(sizes.n_layer)]
        add("feed_forward_length", "i32s", widths)
    if config.get("attention_k_eq_v"):
        heads = global_heads(config)
        add("attention.head_count_kv", "i32s", [sizes.n_head_kv if local else heads for local in slides])
    add("rope.dimension_count", "u32", head)
    add("rope.dimension_count_swa", "u32", sizes.head_dim)
    return list(by_name.values())


def _rope_divisors(sizes: Hyperparameters) -> NDArray[np.float32]:
    """Frequency divisors of global layers, float32 (global_head_dim / 2,)."""
    head = global_head_dim(sizes.config)
    turning = int(head * sizes.rope.get("partial_rotary_factor", 1.0) / 2)
    return np.array([1.0] * turning + [_STILL] * (head // 2 - turning), dtype=np.float32)


_AT, _TO = "model.layers.{layer}", "blk.{layer}"


def _sliding(sizes: Hyperparameters) -> list[int]:
    return [layer for layer in range(sizes.n_layer) if is_sliding(sizes.config, layer)]


def _full(sizes: Hyperparameters) -> list[int]:
    return [layer for layer in range(sizes.n_layer) if not is_sliding(sizes.config, layer)]


def _narrow(sizes: Hyperparameters) -> list[int]:
    return [layer for layer in range(sizes.n_layer) if not is_wide(sizes.config, layer)]


def _wide(sizes: Hyperparameters) -> list[int]:
    return [layer for layer in range(sizes.n_layer) if is_wide(sizes.config, layer)]


def _own_values(sizes: Hyperparameters, layers: Sequence[int]) -> list[int]:
    """Those of `layers` that compute keys and values."""
    return [layer for layer in layers if layer < first_shared(sizes.config)]


def _attention(source: str, target: str, sliding: tuple[str, ...], full: tuple[str, ...]) -> tuple[Rule, Rule]:
    names = (f"{_AT}.self_attn.{source}.weight", f"{_TO}.{target}.weight")
    return Rule(*names, sliding, layers=_sliding), Rule(*names, full, layers=_full)


def _key_or_value(source: str, target: str, sliding: tuple[str, ...], full: tuple[str, ...]) -> tuple[Rule, ...]:
    """The converter keeps unused tensors of layers that share keys and values."""
    names, is_value = (f"{_AT}.self_attn.{source}.weight", f"{_TO}.{target}.weight"), source == "v_proj"

    def in_global(sizes: Hyperparameters) -> list[int]:
        return [] if is_value and sizes.config.get("attention_k_eq_v") else _own_values(sizes, _full(sizes))

    def others(sizes: Hyperparameters) -> list[int]:
        return [layer for layer in _sliding(sizes) if layer >= first_shared(sizes.config)]

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
        keys_as_values=lambda config, layer: bool(config.get("attention_k_eq_v")) and not is_sliding(config, layer),
        shared_from=shared_from,
        rotary=lambda config: int(config["head_dim"]),
        rope=local_rope(is_sliding),
        scale=lambda _config, _layer: 1.0,
        window=window(is_sliding),
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
    per_layer=of_layer,
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
    defaults={"gemma4_text": DEFAULTS, "gemma4_unified_text": UNIFIED_DEFAULTS},
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
    traits=Traits(sliding_every=PATTERN, scaled_embedding=True, normed_values=True, output_after_norm=True),
    token_roles=TokenRoles(raw_bpe=RawBpe("gemma4", _VISIBLE), adds={"bos": True}, space_prefix=SpacePrefix.FALSE_LAST),
)
