"""Bamba: Mamba 2 in place of attention in most layers; attention rotates half of a head.

Shape of the GGUF: llama.cpp's `granitehybrid` architecture (src/models/granite-hybrid.cpp), without Granite's
multipliers. llama.cpp's converter reorders the rows of a whole head for rotation, though half of them do not rotate.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families import granitehybrid
from quantkit.families.base.family import Family, Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, size
from quantkit.families.base.mamba import mamba2_keys, mamba2_rules, no_time_limits
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.rotary import interleave_rotary_rows
from quantkit.families.granitehybrid import mamba_channels, mamba_dimensions
from quantkit.families.llama import llama_keys
from quantkit.forward.config_keys import Config
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.recurrent_mixers import Mamba2

_FAMILY = "Bamba"
_AT, _TO = "model.layers.{layer}", "blk.{layer}"


def _is_mamba(config: Config, layer: int) -> bool:
    return layer not in config["attn_layer_indices"]


def _layers_with(mamba: bool) -> Callable[[Hyperparameters], list[int]]:
    return lambda sizes: [layer for layer in range(sizes.n_layer) if _is_mamba(sizes.config, layer) == mamba]


def _turned_rows(heads: int, head_dim: int, rotated: int) -> NDArray[np.int64]:
    """The rows of queries or keys in llama.cpp's order: of each head, pairs that turn together become neighbours."""
    order = np.arange(heads * head_dim, dtype=np.int64).reshape(heads, head_dim)
    order[:, :rotated] = order[:, interleave_rotary_rows(1, rotated)]
    return order.reshape(-1)


def _queries(sizes: Hyperparameters) -> Take:
    return Take(_turned_rows(sizes.n_head, sizes.head_dim, sizes.head_dim // 2), step=sizes.head_dim)


def _keys_of(sizes: Hyperparameters) -> Take:
    return Take(_turned_rows(sizes.n_head_kv, sizes.head_dim, sizes.head_dim // 2), step=sizes.head_dim)


def _attention(name: str, target: str, *shape: str, take: Callable[[Hyperparameters], Take] | None = None) -> Rule:
    names = f"{_AT}.self_attn.{name}.weight", f"{_TO}.{target}.weight"
    return Rule(*names, shape, layers=_layers_with(mamba=False), take=take)


RULES = (
    Rule(f"{_AT}.input_layernorm.weight", f"{_TO}.attn_norm.weight", ("hidden",)),
    Rule(f"{_AT}.pre_ff_layernorm.weight", f"{_TO}.ffn_norm.weight", ("hidden",)),
    _attention("q_proj", "attn_q", "q", "hidden", take=_queries),
    _attention("k_proj", "attn_k", "kv", "hidden", take=_keys_of),
    _attention("v_proj", "attn_v", "kv", "hidden"),
    _attention("o_proj", "attn_output", "hidden", "q"),
    *mamba2_rules(f"{_AT}.mamba.", mamba_channels, _layers_with(mamba=True)),
    Rule(f"{_AT}.feed_forward.gate_proj.weight", f"{_TO}.ffn_gate.weight", ("ffn", "hidden")),
    Rule(f"{_AT}.feed_forward.up_proj.weight", f"{_TO}.ffn_up.weight", ("ffn", "hidden")),
    Rule(f"{_AT}.feed_forward.down_proj.weight", f"{_TO}.ffn_down.weight", ("hidden", "ffn")),
    Rule("model.embed_tokens.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule("model.final_layernorm.weight", "output_norm.weight", ("hidden",)),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), required=False, tied_to_embedding=True),
)

# transformers' BambaConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "bamba": {
        "attention_bias": False,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "mamba_conv_bias": True,
        "mamba_d_conv": 4,
        "mamba_d_state": 256,
        "mamba_expand": 2,
        "mamba_n_groups": 1,
        "mamba_n_heads": 128,
        "mamba_proj_bias": False,
        "max_position_embeddings": 262144,
        "mlp_bias": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": 128000,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph does not have.

    Raises:
        CheckpointError: attn_layer_indices is not a list of layers, or Mamba's sizes contradict each other.
        UnsupportedError: no layer has attention, or another part of a head rotates.
    """
    n_layer, heads = size(config, "num_hidden_layers"), size(config, "num_attention_heads")
    only(config, "hidden_act", *SILU, family=_FAMILY)
    for name in ("attention_bias", "mlp_bias", "mamba_proj_bias"):
        only(config, name, False, family=_FAMILY)
    only(config, "mamba_conv_bias", True, family=_FAMILY)
    only(config, "mamba_expand", 2, family=_FAMILY)
    no_time_limits(config, _FAMILY)
    head = config.get("head_dim") or size(config, "hidden_size") // heads
    only(config, "attn_rotary_emb", head // 2, family=_FAMILY)
    rope = config.get("rope_parameters") or {}
    for settings in (config, rope):
        only(settings, "partial_rotary_factor", 0.5, family=_FAMILY)
    attending = config.get("attn_layer_indices")
    if attending is not None and not (
        isinstance(attending, list) and all(type(layer) is int and 0 <= layer < n_layer for layer in attending)
    ):
        raise CheckpointError(f"config.json: attn_layer_indices must list layers below {n_layer}, not {attending!r}")
    if not attending:
        raise UnsupportedError(
            f"config.json: attn_layer_indices lists no layer, but llama.cpp runs {_FAMILY} only with an attention layer"
        )
    mamba_heads, width = size(config, "mamba_n_heads"), config.get("mamba_d_head")
    inner = mamba_dimensions(config)["ssm_inner"]
    if width not in (None, "auto") and mamba_heads * size(config, "mamba_d_head") != inner:
        raise CheckpointError(
            f"config.json: mamba_n_heads {mamba_heads} times mamba_d_head {width} is not mamba_expand times hidden_size"
            f" ({inner}); correct one of them"
        )
    return config


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/granite.py)."""
    config = sizes.config
    heads = [0 if _is_mamba(config, layer) else sizes.n_head_kv for layer in range(sizes.n_layer)]
    changed = {
        f"{arch}.attention.head_count_kv": Key(f"{arch}.attention.head_count_kv", "i32s", heads),
        f"{arch}.rope.dimension_count": Key(f"{arch}.rope.dimension_count", "u32", sizes.head_dim // 2),
    }
    return [
        *(changed.get(key.name, key) for key in llama_keys(arch, sizes)),
        *mamba2_keys(arch, mamba_dimensions(config), size(config, "mamba_d_state")),
        Key(f"{arch}.rope.scaling.finetuned", "bool", True),
    ]


FORWARD = Architecture(
    feed_norm="pre_ff_layernorm",
    last_norm="final_layernorm",
    attention=Attention(
        rotary=lambda config: int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]) // 2
    ),
    mamba2=Mamba2(
        layers=_is_mamba,
        head_width=lambda config: (
            int(config["mamba_expand"]) * int(config["hidden_size"]) // int(config["mamba_n_heads"])
        ),
    ),
    feed=FeedForward(at="feed_forward."),
    unpacked=lambda _: "no loader of AWQ or GPTQ folders has been compared on Bamba",
)

FAMILY = Family(
    name=_FAMILY,
    models="Bamba 9B v1 and v2",
    architectures=("BambaForCausalLM",),
    gguf_arch="granitehybrid",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    dimensions=lambda sizes: mamba_dimensions(sizes.config),
    rope_kinds=("default",),
    no_effect=("mamba_chunk_size", "num_logits_to_keep", "z_loss_coefficient"),
    forward=FORWARD,
    traits=granitehybrid.FAMILY.traits,
)
