"""LFM2, made for phones: most layers have a short gated convolution in place of attention.

Shape of the GGUF: llama.cpp's `lfm2` architecture (src/models/lfm2.cpp). A layer without key-value heads has the
convolution. The last norm is called the embedding's, in the checkpoint and in the GGUF.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from quantkit.errors import UnsupportedError
from quantkit.families.base.family import Family, Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.layer_kinds import layer_kinds
from quantkit.families.base.refusals import only
from quantkit.families.base.traits import Traits
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.recurrent_mixers import ShortConvolution

_CONVOLUTION, _ATTENTION = "conv", "full_attention"

# transformers' Lfm2Config.
DEFAULTS: dict[str, dict[str, Any]] = {
    "lfm2": {
        "vocab_size": 65536,
        "hidden_size": 2560,
        "intermediate_size": 12288,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 128000,
        "norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "rope_theta": 1e6,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
    }
}


def inner_width(config: Config) -> int:
    """Width of the feed-forward: two thirds of the stated one, times a factor, rounded up to a multiple."""
    width = int(given(config, "block_ff_dim", "intermediate_size"))
    if not given(config, "block_auto_adjust_ff_dim", default=True):
        return width
    width = int(2 * width / 3)
    factor, multiple = config.get("block_ffn_dim_multiplier", 1.0), int(given(config, "block_multiple_of", default=256))
    return width if factor is None else multiple * -(-int(factor * width) // multiple)


def kinds(config: Mapping[str, Any]) -> list[str]:
    """By layer: `conv` or `full_attention`."""
    n_layer = size(config, "num_hidden_layers")
    stated = layer_kinds(config, n_layer, (_CONVOLUTION, _ATTENTION))
    if stated is None:
        attending = config.get("full_attn_idxs")
        attending = range(n_layer) if attending is None else attending
        return [_ATTENTION if layer in attending else _CONVOLUTION for layer in range(n_layer)]
    return stated


def check(config: dict[str, Any], family: str) -> None:
    """Refuse what llama.cpp's graph has built in otherwise, and state defaults that depend on other settings."""
    only(config, "conv_bias", False, family=family)
    config["layer_types"] = kinds(config)
    if "tie_embedding" in config:
        config["tie_word_embeddings"] = bool(config["tie_embedding"])
    if size(config, "conv_L_cache") < 2:
        raise UnsupportedError(
            f"config.json: conv_L_cache is {config['conv_L_cache']}, but llama.cpp runs {family} only with at least 2"
        )


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """The width of the feed-forward under its usual name."""
    check(config, "LFM2")
    size(config, "block_ff_dim", "intermediate_size")
    number(config, "block_ffn_dim_multiplier")
    if config.get("block_auto_adjust_ff_dim"):
        size(config, "block_multiple_of")
    width = inner_width(config)
    config.pop("block_ff_dim", None)
    return config | {"intermediate_size": width, "block_auto_adjust_ff_dim": False}


def dimensions(sizes: Hyperparameters) -> dict[str, int]:
    """Width of the convolution's input projection, and of its kernel."""
    return {"three_hidden": 3 * sizes.hidden, "kernel": size(sizes.config, "conv_L_cache")}


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The common keys, with key-value heads by layer, and the convolution's width."""
    heads = [0 if kind == _CONVOLUTION else sizes.n_head_kv for kind in sizes.config["layer_types"]]
    common = [
        Key(key.name, "i32s", heads) if key.name == f"{arch}.attention.head_count_kv" else key
        for key in base_keys(arch, sizes)
    ]
    return [
        *common,
        Key(f"{arch}.vocab_size", "u32", sizes.vocab),
        Key(f"{arch}.shortconv.l_cache", "u32", size(sizes.config, "conv_L_cache")),
    ]


def _layers_of(kind: str) -> Callable[[Hyperparameters], list[int]]:
    return lambda sizes: [layer for layer in range(sizes.n_layer) if sizes.config["layer_types"][layer] == kind]


def _all_channels(sizes: Hyperparameters) -> Take:
    """The convolution without its middle axis of one."""
    return Take(np.arange(sizes.hidden, dtype=np.int64))


_AT, _TO = "model.layers.{layer}", "blk.{layer}"


def _attention(source: str, target: str, *shape: str) -> Rule:
    names = (f"{_AT}.self_attn.{source}.weight", f"{_TO}.{target}.weight")
    return Rule(*names, shape, layers=_layers_of(_ATTENTION))


def _convolution(source: str, target: str, *shape: str, take: Callable[[Hyperparameters], Take] | None = None) -> Rule:
    names = (f"{_AT}.conv.{source}.weight", f"{_TO}.shortconv.{target}.weight")
    return Rule(*names, shape, layers=_layers_of(_CONVOLUTION), take=take)


MIXERS = (
    Rule(f"{_AT}.operator_norm.weight", f"{_TO}.attn_norm.weight", ("hidden",)),
    Rule(f"{_AT}.ffn_norm.weight", f"{_TO}.ffn_norm.weight", ("hidden",)),
    _attention("q_proj", "attn_q", "q", "hidden"),
    _attention("k_proj", "attn_k", "kv", "hidden"),
    _attention("v_proj", "attn_v", "kv", "hidden"),
    _attention("out_proj", "attn_output", "hidden", "q"),
    _attention("q_layernorm", "attn_q_norm", "head_dim"),
    _attention("k_layernorm", "attn_k_norm", "head_dim"),
    _convolution("in_proj", "in_proj", "three_hidden", "hidden"),
    _convolution("conv", "conv", "hidden", "1", "kernel", take=_all_channels),
    _convolution("out_proj", "out_proj", "hidden", "hidden"),
)
MLP = (
    Rule(f"{_AT}.feed_forward.w1.weight", f"{_TO}.ffn_gate.weight", ("ffn", "hidden")),
    Rule(f"{_AT}.feed_forward.w3.weight", f"{_TO}.ffn_up.weight", ("ffn", "hidden")),
    Rule(f"{_AT}.feed_forward.w2.weight", f"{_TO}.ffn_down.weight", ("hidden", "ffn")),
)
ENDS = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule("model.embedding_norm.weight", "token_embd_norm.weight", ("hidden",)),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), required=False, tied_to_embedding=True),
)


def convolves(config: Config, layer: int) -> bool:
    """Whether a layer has the convolution."""
    types = config.get("layer_types")
    if types is None:
        attending = config.get("full_attn_idxs")
        return attending is not None and layer not in attending
    return bool(types[layer] == _CONVOLUTION)


FORWARD = Architecture(
    attention_norm="operator_norm",
    feed_norm="ffn_norm",
    attention=Attention(out="out_proj", norms=("q_layernorm", "k_layernorm")),
    short_convolution=ShortConvolution(layers=convolves),
    feed=FeedForward(at="feed_forward.", gate="w1", up="w3", down="w2", inner=inner_width),
    last_norm="embedding_norm",
    tied=True,
)

FAMILY = Family(
    name="LFM2",
    models="LFM2 and LFM2.5 230M to 2.6B",
    architectures=("Lfm2ForCausalLM", "LFM2ForCausalLM"),
    gguf_arch="lfm2",
    rules=MIXERS + MLP + ENDS,
    keys=keys,
    defaults=DEFAULTS,
    prepare=prepare,
    dimensions=dimensions,
    rope_kinds=("default",),
    forward=FORWARD,
    traits=Traits(residual_first=True, last_norm="token_embd_norm"),
)
