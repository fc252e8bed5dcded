"""Llama-Nemotron Super and Ultra, DeciLM: Llama whose layers differ in key heads and width, or lack a part.

An architecture search chose attention, one linear or nothing for each layer, and the width of its feed-forward.

Shape of the GGUF: llama.cpp's `deci` architecture (src/models/deci.cpp). transformers has no class; the sources are
llama.cpp's converter (conversion/deci.py) and the published modeling_decilm.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.family import Computed, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.llama import ATTENTION, ENDS, MLP, llama3_rope_factors
from quantkit.forward.config_keys import Config
from quantkit.forward.description import Architecture
from quantkit.forward.recurrent_mixers import OneLinear

_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_FAMILY = "DeciLM"
# Widths of feed-forwards are multiples of this.
_MULTIPLE = 256


class _Block(NamedTuple):
    """A layer: heads (0: no attention), key heads (0: one linear in place of attention), width of the feed-forward."""

    heads: int
    kv_heads: int
    ffn: int


def _block(config: Config, layer: int) -> _Block:
    heads = int(config["num_attention_heads"])
    blocks = config.get("block_configs")
    if not blocks:
        kv = config.get("num_key_value_heads_per_layer")
        return _Block(heads, int(kv[layer] if kv else config["num_key_value_heads"]), int(config["intermediate_size"]))
    attention, feed = blocks[layer]["attention"], blocks[layer]["ffn"]
    group, multiplier = attention.get("n_heads_in_group"), feed.get("ffn_mult")
    ffn = int(2 * float(multiplier or 0.0) * int(config["hidden_size"]) / 3)
    ffn += -ffn % _MULTIPLE
    if group is None:
        return _Block(heads if attention.get("replace_with_linear") else 0, 0, ffn)
    return _Block(heads, heads // int(group), ffn)


def _blocks(sizes: Hyperparameters) -> list[_Block]:
    return [_block(sizes.config, layer) for layer in range(sizes.n_layer)]


def _attends(sizes: Hyperparameters) -> list[int]:
    return [layer for layer, block in enumerate(_blocks(sizes)) if block.kv_heads]


def _is_linear(sizes: Hyperparameters) -> list[int]:
    return [layer for layer, block in enumerate(_blocks(sizes)) if block.heads and not block.kv_heads]


def _mixes(sizes: Hyperparameters) -> list[int]:
    return [layer for layer, block in enumerate(_blocks(sizes)) if block.heads]


def _feeds(sizes: Hyperparameters) -> list[int]:
    return [layer for layer, block in enumerate(_blocks(sizes)) if block.ffn]


_LINEAR_ATTENTION = f"{_AT}.self_attn.linear_attn.weight"
_LAYERS = {"attn_norm.weight": _mixes, "ffn_norm.weight": _feeds}
RULES = (
    *(replace(rule, layers=_LAYERS.get(rule.target.removeprefix("blk.{layer}."), _attends)) for rule in ATTENTION),
    Rule(_LINEAR_ATTENTION, f"{_TO}.attn_output.weight", ("hidden", "hidden"), layers=_is_linear),
    *(replace(rule, layers=_feeds) for rule in MLP),
    *ENDS,
)


def _layer_dimensions(sizes: Hyperparameters, layer: int) -> dict[str, int]:
    block = _block(sizes.config, layer)
    return {"ffn": block.ffn, "kv": block.kv_heads * sizes.head_dim, "n_head_kv": block.kv_heads}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family=_FAMILY)
    plain_yarn(config, _FAMILY)
    layers, heads = size(config, "num_hidden_layers"), size(config, "num_attention_heads")
    size(config, "hidden_size")
    blocks, kv = config.get("block_configs"), config.get("num_key_value_heads_per_layer")
    if blocks is None:
        if kv is not None and (not isinstance(kv, list) or len(kv) != layers or not all(map(_is_count, kv))):
            raise CheckpointError(f"config.json: num_key_value_heads_per_layer must list {layers} numbers, not {kv!r}")
        stated = optional_size(config, "num_key_value_heads")
        return {**config, "num_key_value_heads": stated or (kv[0] if kv else size(config, "num_key_value_heads"))}
    if not isinstance(blocks, list) or len(blocks) != layers:
        raise CheckpointError(f"config.json: block_configs must list {layers} layers; correct it")
    for layer, block in enumerate(blocks):
        _check(block, layer, heads)
    of_layers = [_block(config, layer) for layer in range(layers)]
    for layer, block in enumerate(of_layers):
        if not block.ffn and (block.heads or layer == layers - 1):
            raise UnsupportedError(
                f"config.json: layer {layer} has no feed-forward; llama.cpp runs {_FAMILY} only if such a layer has no"
                " attention and is not the last, so a GGUF cannot express this layer"
            )
    first = next((block for block in of_layers if block.kv_heads), None)
    if first is None:
        raise UnsupportedError(f"config.json: no layer has attention, but llama.cpp runs {_FAMILY} only with attention")
    width = max(block.ffn for block in of_layers)
    return {**config, "intermediate_size": width, "num_key_value_heads": first.kv_heads}


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value < 10_000


def _check(block: object, layer: int, heads: int) -> None:
    """Refuse a layer of block_configs that is incomplete, or that llama.cpp's graph does not have."""
    parts = [block.get(part) if isinstance(block, Mapping) else None for part in ("attention", "ffn")]
    attention, feed = (part if isinstance(part, Mapping) else None for part in parts)
    if attention is None or feed is None:
        raise CheckpointError(f"config.json: block_configs of layer {layer} must have attention and ffn; correct it")
    group = attention.get("n_heads_in_group")
    if group is not None and not (_is_count(group) and heads % group == 0):
        raise CheckpointError(
            f"config.json: n_heads_in_group of layer {layer} is {group!r}; it must divide num_attention_heads {heads}"
        )
    multiplier = number(feed, "ffn_mult")
    if multiplier is not None and not 0 < multiplier < 1000:
        raise CheckpointError(f"config.json: ffn_mult of layer {layer} is {multiplier:g}; it must be positive")
    only(feed, "replace_with_linear", False, family=_FAMILY)
    only(feed, "hidden_act", *SILU, family=_FAMILY)
    for name in ("window_length", "num_sink_tokens"):
        only(attention, name, family=_FAMILY)
    only(attention, "unshifted_sink", False, family=_FAMILY)


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/deci.py)."""
    blocks = _blocks(sizes)
    kv_heads = Key(f"{arch}.attention.head_count_kv", "i32s", [block.kv_heads for block in blocks])
    last = [
        Key(f"{arch}.vocab_size", "u32", sizes.vocab),
        Key(f"{arch}.rope.dimension_count", "u32", sizes.head_dim),
    ]
    if not sizes.config.get("block_configs"):
        by_layer = bool(sizes.config.get("num_key_value_heads_per_layer"))
        base = base_keys(arch, sizes)
        return [*(kv_heads if by_layer and key.name == kv_heads.name else key for key in base), *last]
    theta = sizes.rope.get("rope_theta")
    return [
        *([] if theta is None else [Key(f"{arch}.rope.freq_base", "f32", theta)]),
        kv_heads,
        Key(f"{arch}.attention.head_count", "i32s", [block.heads for block in blocks]),
        Key(f"{arch}.feed_forward_length", "i32s", [block.ffn for block in blocks]),
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.context_length", "u32", sizes.context),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.attention.layer_norm_rms_epsilon", "f32", sizes.norm_eps),
        Key(f"{arch}.attention.key_length", "u32", sizes.head_dim),
        Key(f"{arch}.attention.value_length", "u32", sizes.head_dim),
        *last,
    ]


def _per_layer(config: Config, layer: int) -> Config:
    block = _block(config, layer)
    return {**config, "num_key_value_heads": block.kv_heads or 1, "intermediate_size": block.ffn}


FORWARD = Architecture(
    mixes=lambda config, layer: _block(config, layer).heads > 0,
    feeds=lambda config, layer: _block(config, layer).ffn > 0,
    one_linear=OneLinear(layers=lambda config, layer: _block(config, layer).kv_heads == 0),
    per_layer=_per_layer,
)

FAMILY = Family(
    name=_FAMILY,
    models="Llama-3.1-Nemotron 51B and Ultra 253B, Llama-3.3-Nemotron-Super 49B, DeciLM-7B",
    architectures=("DeciLMForCausalLM",),
    gguf_arch="deci",
    rules=RULES,
    keys=_keys,
    computed=(Computed("rope_freqs.weight", llama3_rope_factors),),
    # DeciLMConfig of the published code
    defaults={
        kind: {
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
        }
        for kind in ("nemotron-nas", "deci")
    },
    prepare=_prepare,
    layer_dimensions=_layer_dimensions,
    rope_kinds=("default", "linear", "llama3", "dynamic"),
    forward=FORWARD,
)
