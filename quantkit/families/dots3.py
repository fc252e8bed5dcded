"""Dots 3 Note (text): latent attention of two shapes, with an indexer or a window, and a gate for each head.

Shape of the GGUF: llama.cpp's `dots3note` architecture (src/models/dots3note.cpp). The factors of the normed latents
are folded into the weights of their norms. The layer that predicts a later token (MTP) has a window.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from quantkit.errors import CheckpointError
from quantkit.families.base.family import Dropped, Family, Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.layer_kinds import layer_kinds
from quantkit.families.base.layers import nextn_keys, nextn_rules
from quantkit.families.base.multimodal import TOWERS_LEFT_OUT
from quantkit.families.base.refusals import only
from quantkit.families.base.traits import Traits
from quantkit.families.deepseek import ATTENTION, FEED_FORWARD, V3_FORWARD, matrix
from quantkit.families.deepseek32 import INDEXER, indexer_keys, prepare_indexed
from quantkit.families.deepseek32 import dimensions as indexed_dimensions
from quantkit.families.glm4moelite import keys as latent_keys
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import PLAIN_MLP
from quantkit.forward.config_keys import Config
from quantkit.forward.mixers import Indexer, LatentNorms
from quantkit.tokenizer.roles import TokenRoles

_FAMILY = "Dots 3"
_ATTENTION = "model.layers.{layer}.self_attn"
_FULL, _SLIDING = "full_attention", "sliding_attention"
_IN_WINDOWS = ("num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_EMBEDDING = "model.mtp.embed_tokens.weight"


def _slides(config: Config, layer: int) -> bool:
    return bool(config["layer_types"][layer] == _SLIDING)


def _layers(slides: bool) -> Callable[[Hyperparameters], Iterable[int]]:
    return lambda sizes: [layer for layer in range(sizes.n_layer) if _slides(sizes.config, layer) == slides]


_INDEXED, _WINDOWED = _layers(False), _layers(True)


def _in_window(config: Config) -> dict[str, Any]:
    """The config of a layer with a window, under the names of the others."""
    return {**config, **{name: config[f"swa_{name}"] for name in _IN_WINDOWS}, "rope_theta": config["swa_rope_theta"]}


def _factor(rank: str) -> Callable[[Hyperparameters], tuple[float, ...]]:
    return lambda sizes: (math.sqrt(sizes.hidden / size(sizes.config, rank)),)


def _heads_in_windows(sizes: Hyperparameters, *, keys: bool) -> tuple[Take, ...]:
    """Rows of kv_b_proj in a layer with a window, head by head (see families.deepseek)."""
    heads, nope, value = (
        size(sizes.config, f"swa_{name}") for name in ("num_attention_heads", "qk_nope_head_dim", "v_head_dim")
    )
    first, count = (0, nope) if keys else (nope, value)
    starts = (head * (nope + value) + first for head in range(heads))
    return tuple(Take(np.arange(start, start + count), transposed=keys) for start in starts)


_WINDOWED_TAKES = {
    "attn_k_b": lambda sizes: _heads_in_windows(sizes, keys=True),
    "attn_v_b": lambda sizes: _heads_in_windows(sizes, keys=False),
}
_OWN = (
    *ATTENTION,
    matrix(f"{_ATTENTION}.k_rope_only_layernorm", "attn_k_norm", "rope_width"),
    matrix(f"{_ATTENTION}.g_proj", "attn_gate", "n_head", "hidden"),
)
_SIZES_IN_WINDOWS = ("q", "latent", "latent_and_rope", "keys_and_values", "values", "n_head")


def _of_kind(rule: Rule, windowed: bool) -> Rule:
    """A rule of attention for one kind of layers."""
    name = rule.target.split(".")[-2]
    factors = {"attn_q_a_norm": "q_lora_rank", "attn_kv_a_norm": "swa_kv_lora_rank" if windowed else "kv_lora_rank"}
    rule = replace(rule, factors=_factor(factors[name]) if name in factors else None, when=None)
    if not windowed:
        return replace(rule, layers=_INDEXED)
    shape = tuple(f"window_{part}" if part in _SIZES_IN_WINDOWS else part for part in rule.shape)
    return replace(rule, shape=shape, take=_WINDOWED_TAKES.get(name), layers=_WINDOWED)


_OF_WINDOWS = tuple(_of_kind(rule, True) for rule in _OWN if ".q_proj." not in rule.source)
_RULES = (
    *(_of_kind(rule, False) for rule in _OWN if ".q_proj." not in rule.source),
    *_OF_WINDOWS,
    *(replace(rule, layers=_INDEXED) for rule in INDEXER),
    *(replace(rule, when=None) for rule in FEED_FORWARD),
    *(
        replace(rule, source=_EMBEDDING) if rule.source.endswith(".embed_tokens.weight") else rule
        for rule in nextn_rules((*_OF_WINDOWS, *PLAIN_MLP))
    ),
    *ENDS,
)


def _observe(config: dict[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """config.json does not state the layer that predicts a later token; llama.cpp's converter goes by its embedding."""
    return {**config, "num_nextn_predict_layers": int(_EMBEDDING in tensors)}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph does not have.

    Raises:
        CheckpointError: a size or a setting is missing, or two do not agree.
        UnsupportedError: a setting that llama.cpp does not run.
    """
    n_layer = size(config, "num_hidden_layers")
    for name, allowed in (
        ("use_dsa", True),
        ("use_sliding_window", True),
        ("normalization", "RMSNorm"),
        ("final_norm", "RMSNorm"),
        ("k_rope_only_layernorm", True),
        ("attention_gate_type", "headwise"),
        ("swa_attention_gate_type", "headwise"),
        ("apply_mla_qkv_lora_rescale", True),
        ("use_dynamic_rsf", False),
        ("moe_gating_fp32", False),
        ("n_group", 1),
        ("topk_group", 1),
    ):
        only(config, name, allowed, family=_FAMILY)
    if config.get("apply_mla_qkv_lora_rescale") is None:
        raise CheckpointError("config.json has no apply_mla_qkv_lora_rescale; add it, it must be true")
    for name in _IN_WINDOWS:
        size(config, f"swa_{name}")
    if number(config, "swa_rope_theta") is None:
        raise CheckpointError("config.json has no swa_rope_theta; add it, the rotary positions of windows depend on it")
    kinds = layer_kinds(config, n_layer, (_FULL, _SLIDING))
    if kinds is None:
        raise CheckpointError(f"config.json has no layer_types; add the kinds of {n_layer} layers")
    config["sliding_window"] = size(config, "sliding_window_size")
    heads = size(config, "swa_num_attention_heads")
    only(config, "swa_num_key_value_heads", heads, family=_FAMILY)
    only(config, "swa_q_lora_rank", size(config, "q_lora_rank"), family=_FAMILY)
    only(config, "swa_qk_rope_head_dim", size(config, "qk_rope_head_dim"), family=_FAMILY)
    only(config, "moe_shared_expert_intermediate_size", size(config, "moe_intermediate_size"), family=_FAMILY)
    config = prepare_indexed({key: value for key, value in config.items() if key != "layer_types"}, _FAMILY)
    return {**config, "layer_types": kinds}


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    windowed = _in_window(sizes.config)
    heads, rope, latent = windowed["num_attention_heads"], windowed["qk_rope_head_dim"], windowed["kv_lora_rank"]
    nope, value = windowed["qk_nope_head_dim"], windowed["v_head_dim"]
    return {
        **indexed_dimensions(sizes),
        "rope_width": size(sizes.config, "qk_rope_head_dim"),
        "window_q": heads * (nope + rope),
        "window_latent": latent,
        "window_latent_and_rope": latent + rope,
        "window_keys_and_values": heads * (nope + value),
        "window_values": heads * value,
        "window_n_head": heads,
    }


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/dots3.py)."""
    config, layers = sizes.config, sizes.n_layer + sizes.n_draft
    windowed = _in_window(config)
    slides = [_slides(config, layer) for layer in range(sizes.n_layer)]
    heads, attention = f"{arch}.attention.head_count", f"{arch}.attention"
    counts = [windowed["num_attention_heads"] if slid else sizes.n_head for slid in (*slides, True)][:layers]
    rope, latent = windowed["qk_rope_head_dim"], windowed["kv_lora_rank"]
    assert heads in {key.name for key in base_keys(arch, sizes)}
    return [
        *(Key(heads, "i32s", counts) if key.name == heads else key for key in latent_keys(arch, sizes)),
        Key(f"{attention}.sliding_window", "u32", size(config, "sliding_window_size")),
        Key(f"{attention}.sliding_window_pattern", "bools", slides),
        Key(f"{attention}.kv_lora_rank_swa", "u32", latent),
        Key(f"{attention}.key_length_swa", "u32", latent + rope),
        Key(f"{attention}.value_length_swa", "u32", latent),
        Key(f"{attention}.key_length_mla_swa", "u32", windowed["qk_nope_head_dim"] + rope),
        Key(f"{attention}.value_length_mla_swa", "u32", windowed["v_head_dim"]),
        *(nextn_keys(arch, sizes) if sizes.n_draft else []),
        *indexer_keys(arch, sizes),
        Key(f"{attention}.indexer.types", "bools", [not slid for slid in slides]),
    ]


def _cautions(sizes: Hyperparameters) -> Iterator[str]:
    top = size(sizes.config, "index_topk")
    if sizes.context is not None and sizes.context > top:
        yield (
            "llama.cpp rotates index queries and keys by halves, and transformers by neighbours; in texts of more than"
            f" {top} tokens they may attend to other tokens"
        )


def _per_layer(config: Config, layer: int) -> Config:
    return {**(_in_window(config) if _slides(config, layer) else config), "rope_parameters": None}


FORWARD = replace(
    V3_FORWARD,
    attention=replace(
        V3_FORWARD.attention,
        gate="g_proj",
        gate_per_head=lambda _: True,
        window=lambda config, layer: int(config["sliding_window_size"]) if _slides(config, layer) else None,
        indexer=Indexer(
            pairs="neighbours",
            own=lambda config, layer: not _slides(config, layer),
            layers=lambda config, layer: not _slides(config, layer),
        ),
        latent_norms=LatentNorms(
            queries=lambda config: math.sqrt(config["hidden_size"] / config["q_lora_rank"]),
            values=lambda config: math.sqrt(config["hidden_size"] / config["kv_lora_rank"]),
            turned_key="k_rope_only_layernorm",
        ),
    ),
    per_layer=_per_layer,
    unpacked=lambda _: "GPTQModel has no Dots 3, and transformers stacks its experts in one tensor",
    not_mlx="mlx-lm has not been compared with it",
)

FAMILY = Family(
    name=_FAMILY,
    models="Dots 3 Note 288B-A19B (text only)",
    architectures=("Dots3NoteForCausalLM", "Dots3NoteForConditionalGeneration", "Dots3NoteTextForCausalLM"),
    gguf_arch="dots3note",
    rules=_RULES,
    keys=_keys,
    observe=_observe,
    prepare=_prepare,
    dimensions=_dimensions,
    dropped=(Dropped(r"(model\.)?(vision_encoder|audio_encoder|audio_adapter)\..*", TOWERS_LEFT_OUT),),
    rope_kinds=("default",),
    cautions=_cautions,
    forward=FORWARD,
    traits=Traits(sliding_every=4),
    token_roles=TokenRoles(also={"eot": "<|endofassistant|>"}),
)
