"""Falcon 7B, 40B, 180B and Falcon 2, also under the names of their first release (RWForCausalLM).

Shape of the GGUF: llama.cpp's `falcon` architecture (src/models/falcon.cpp): attention and MLP side by side, one norm
before both (7B, Falcon 2) or one each (40B, 180B). Falcon 3 is a Llama.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from quantkit.families.base.family import Family, Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.keys import rope_keys
from quantkit.families.base.refusals import GELU, only, plain_yarn
from quantkit.families.base.traits import Traits
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import LAYER_NORM

_THETA = 10000.0  # llama.cpp's base of rotation where a GGUF states none


def _by_role(sizes: Hyperparameters) -> Take:
    """From groups (queries that share a key, the key, the value) to all queries, all keys, all values."""
    rows = np.arange((sizes.n_head + 2 * sizes.n_head_kv) * sizes.head_dim, dtype=np.int64)
    groups = rows.reshape(sizes.n_head_kv, -1, sizes.head_dim)
    return Take(np.concatenate([rows.reshape(-1) for rows in (groups[:, :-2], groups[:, -2], groups[:, -1])]))


def _with_two_norms(sizes: Hyperparameters) -> range:
    """All layers if attention and MLP each have a norm, else no layer."""
    config = sizes.config
    two = config["new_decoder_architecture"] and config.get("num_ln_in_parallel_attn") in (None, 2)
    return range(sizes.n_layer if two else 0)


def _with_one_norm(sizes: Hyperparameters) -> range:
    return range(sizes.n_layer - len(_with_two_norms(sizes)))


_H = "transformer.h.{layer}"
_NORMS = (
    (f"{_H}.input_layernorm", "blk.{layer}.attn_norm", _with_one_norm),
    (f"{_H}.ln_mlp", "blk.{layer}.attn_norm", _with_two_norms),
    (f"{_H}.ln_attn", "blk.{layer}.attn_norm_2", _with_two_norms),
    ("transformer.ln_f", "output_norm", None),
)

RULES = (
    Rule("transformer.word_embeddings.weight", "token_embd.weight", ("vocab", "hidden")),
    *(
        Rule(f"{source}.{kind}", f"{target}.{kind}", ("hidden",), layers=layers)
        for source, target, layers in _NORMS
        for kind in ("weight", "bias")
    ),
    Rule(
        f"{_H}.self_attention.query_key_value.weight", "blk.{layer}.attn_qkv.weight", ("qkv", "hidden"), take=_by_role
    ),
    Rule(f"{_H}.self_attention.dense.weight", "blk.{layer}.attn_output.weight", ("hidden", "hidden")),
    Rule(f"{_H}.mlp.dense_h_to_4h.weight", "blk.{layer}.ffn_up.weight", ("ffn", "hidden")),
    Rule(f"{_H}.mlp.dense_4h_to_h.weight", "blk.{layer}.ffn_down.weight", ("hidden", "ffn")),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), required=False, tied_to_embedding=True),
)


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Rename the first release's settings to transformers'; compute the number of key heads of the three layouts.

    `num_kv_heads` counts in the new decoder only: the old one has one key head (multi_query) or one for each query.
    """
    for name, allowed in (("alibi", (False,)), ("parallel_attn", (True,)), ("bias", (False,)), ("activation", GELU)):
        only(config, name, *allowed, family="Falcon")
    plain_yarn(config, "Falcon")
    hidden = size(config, "n_embed", "hidden_size")
    heads = size(config, "num_attention_heads", "n_head")
    grouped = optional_size(config, "num_kv_heads", "n_head_kv")
    # configs of the first release do not state the decoder; only its 40B has n_head_kv
    new = bool(config.get("new_decoder_architecture", config.get("n_head_kv") is not None))
    multi_query = bool(config.get("multi_query", True))
    key_heads = (grouped or heads) if new else 1 if multi_query else heads
    return {
        **config,
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_kv_heads": grouped or heads,
        "num_key_value_heads": key_heads,
        "num_hidden_layers": size(config, "num_hidden_layers", "n_layer"),
        "intermediate_size": optional_size(config, "ffn_hidden_size") or 4 * hidden,
        "new_decoder_architecture": new,
        "max_position_embeddings": optional_size(config, "max_position_embeddings") or 2048,
    }


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/falcon.py), with the rotary settings that it leaves out."""
    rope = [key for key in rope_keys(arch, sizes) if not (key.name.endswith("freq_base") and key.value == _THETA)]
    return [
        Key(f"{arch}.context_length", "u32", sizes.context),
        Key(f"{arch}.tensor_data_layout", "str", "jploski"),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.attention.head_count", "u32", sizes.n_head),
        Key(f"{arch}.attention.head_count_kv", "u32", sizes.n_head_kv),
        Key(f"{arch}.attention.layer_norm_epsilon", "f32", number(sizes.config, "layer_norm_epsilon") or 1e-5),
        *rope,
    ]


# transformers' FalconConfig; the model types of the first release are the same model.
_DEFAULTS = {
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 2048,
    "rope_theta": _THETA,
    "tie_word_embeddings": True,
}


def _kv_heads(config: Config) -> int:
    if config.get("new_decoder_architecture"):
        return int(given(config, "num_kv_heads", "num_attention_heads"))
    return 1 if given(config, "multi_query", default=True) else int(given(config, "num_attention_heads", "n_head"))


def _variant(config: Config) -> Mapping[str, Any]:
    if config.get("new_decoder_architecture") and given(config, "num_ln_in_parallel_attn", default=2) == 2:
        return {"attention_norm": "ln_attn", "feed_norm": "ln_mlp"}
    return {}


FORWARD = Architecture(
    base="transformer.",
    embedding="word_embeddings",
    layer="h.{}.",
    norm=LAYER_NORM,
    feed_norm=None,
    parallel=True,
    attention=Attention(at="self_attention.", fused="query_key_value", grouped=True, out="dense", kv_heads=_kv_heads),
    feed=FeedForward(
        gate=None,
        up="dense_h_to_4h",
        down="dense_4h_to_h",
        inner=lambda config: int(given(config, "ffn_hidden_size", default=4 * config["hidden_size"])),
        activation=("activation",),
        default_activation="gelu",
    ),
    last_norm="ln_f",
    tied=True,
    variant=_variant,
    refused=lambda config: (
        "alibi" if config.get("alibi") else None if given(config, "parallel_attn", default=True) else "serial layers"
    ),
)

FAMILY = Family(
    name="Falcon",
    models="Falcon 7B/40B/180B, Falcon 2",
    architectures=("FalconForCausalLM", "RWForCausalLM"),
    gguf_arch="falcon",
    rules=RULES,
    keys=keys,
    defaults=dict.fromkeys(("falcon", "RefinedWeb", "RefinedWebModel"), _DEFAULTS),
    prepare=prepare,
    rename=((r"^(?!transformer\.|lm_head\.)", "transformer."),),
    dimensions=lambda sizes: {"qkv": (sizes.n_head + 2 * sizes.n_head_kv) * sizes.head_dim},
    rope_kinds=("default", "linear", "yarn", "dynamic"),
    # the tensors show it
    no_effect=("num_ln_in_parallel_attn",),
    forward={"FalconForCausalLM": FORWARD},
    traits=Traits(layer_norm=True, parallel=True),
)
