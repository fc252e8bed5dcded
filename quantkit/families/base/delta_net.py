"""Gated DeltaNet in most layers, gated attention in the others: kinds of layers, order of heads, rules and keys.

llama.cpp's value heads go round the key heads (src/models/delta-net-base.cpp), where transformers keeps those of a key
head together.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.families.base.adjust import negative_exp
from quantkit.families.base.family import Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, optional_size, size
from quantkit.families.base.layer_kinds import layer_kinds
from quantkit.forward.config_keys import Config, given

_KINDS = ("linear_attention", "full_attention")
_INTERVAL = 4

_TO = "blk.{layer}"
_LINEAR = "model.layers.{layer}.linear_attn"


def full_attention(config: Mapping[str, Any], n_layer: int) -> list[bool]:
    """Whether each layer has attention: by `layer_types`, else every `full_attention_interval`-th one.

    Raises:
        CheckpointError: `layer_types` is not a list of one entry per layer.
        UnsupportedError: a layer is not `linear_attention` or `full_attention`.
    """
    kinds = layer_kinds(config, n_layer, _KINDS)
    if kinds is None:
        interval = optional_size(config, "full_attention_interval") or _INTERVAL
        return [(layer + 1) % interval == 0 for layer in range(n_layer)]
    return [kind == "full_attention" for kind in kinds]


def _layers_with(attention: bool) -> Callable[[Hyperparameters], Iterable[int]]:
    return lambda sizes: [
        layer for layer, full in enumerate(full_attention(sizes.config, sizes.n_layer)) if full == attention
    ]


WITH_ATTENTION, WITH_DELTA_NET = _layers_with(True), _layers_with(False)


def dimensions(sizes: Hyperparameters) -> dict[str, int]:
    """The widths that DeltaNet's tensors have, and the rows of queries with their gates."""
    config = sizes.config
    key_width, key_heads = size(config, "linear_key_head_dim"), size(config, "linear_num_key_heads")
    value_width, value_heads = size(config, "linear_value_head_dim"), size(config, "linear_num_value_heads")
    keys, values = key_width * key_heads, value_width * value_heads
    return {
        "gated_q": 2 * sizes.n_head * sizes.head_dim,
        "two_hidden": 2 * sizes.hidden,
        "linear_values": values,
        "linear_channels": 2 * keys + values,
        "linear_value_heads": value_heads,
        "linear_value_width": value_width,
        "linear_kernel": size(config, "linear_conv_kernel_dim"),
        "linear_qkvz": 2 * keys + 2 * values,
        "linear_ba": 2 * value_heads,
    }


def _round(sizes: Hyperparameters, width: int) -> NDArray[np.int64]:
    """Order of rows from value heads by key head to llama.cpp's: the first of every key head, then the second."""
    key_heads, value_heads = (size(sizes.config, f"linear_num_{kind}_heads") for kind in ("key", "value"))
    order = np.arange(value_heads * width, dtype=np.int64).reshape(key_heads, -1, width)
    return order.swapaxes(0, 1).reshape(-1)


def _heads(sizes: Hyperparameters) -> Take:
    return Take(_round(sizes, 1))


def _value_rows(sizes: Hyperparameters) -> Take:
    return Take(_round(sizes, size(sizes.config, "linear_value_head_dim")))


def _value_columns(sizes: Hyperparameters) -> Take:
    return Take(columns=_value_rows(sizes).rows)


def _channels(sizes: Hyperparameters) -> Take:
    """Queries and keys as they are, then the values in llama.cpp's order."""
    values = _value_rows(sizes).rows
    assert values is not None
    before = 2 * size(sizes.config, "linear_key_head_dim") * size(sizes.config, "linear_num_key_heads")
    return Take(np.concatenate([np.arange(before, dtype=np.int64), before + values]))


def matrix(source: str, target: str, *shape: str, **more: Any) -> Rule:
    """A weight of a layer as it is."""
    return Rule(f"{source}.weight", f"{_TO}.{target}.weight", shape, **more)


_DELTA_NET = (
    matrix(f"{_LINEAR}.in_proj_qkv", "attn_qkv", "linear_channels", "hidden", take=_channels),
    matrix(f"{_LINEAR}.in_proj_z", "attn_gate", "linear_values", "hidden", take=_value_rows),
    matrix(f"{_LINEAR}.in_proj_b", "ssm_beta", "linear_value_heads", "hidden", take=_heads),
    matrix(f"{_LINEAR}.in_proj_a", "ssm_alpha", "linear_value_heads", "hidden", take=_heads),
    matrix(f"{_LINEAR}.conv1d", "ssm_conv1d", "linear_channels", "1", "linear_kernel", take=_channels),
    Rule(f"{_LINEAR}.dt_bias", f"{_TO}.ssm_dt.bias", ("linear_value_heads",), take=_heads),
    Rule(f"{_LINEAR}.A_log", f"{_TO}.ssm_a", ("linear_value_heads",), take=_heads, adjust=negative_exp),
    matrix(f"{_LINEAR}.norm", "ssm_norm", "linear_value_width"),
    matrix(f"{_LINEAR}.out_proj", "ssm_out", "hidden", "linear_values", take=_value_columns),
)
DELTA_NET = tuple(replace(rule, layers=WITH_DELTA_NET) for rule in _DELTA_NET)


def delta_net_keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The keys of draft layers, DeltaNet and the kinds of layers, in the converter's order."""
    config, dims = sizes.config, dimensions(sizes)
    result = [Key(f"{arch}.nextn_predict_layers", "u32", sizes.n_draft)] if sizes.n_draft else []
    recurrent = [not full for full in full_attention(config, sizes.n_layer)] + [False] * sizes.n_draft
    interval = optional_size(config, "full_attention_interval") if config.get("layer_types") else None
    return [
        *result,
        Key(f"{arch}.ssm.conv_kernel", "u32", dims["linear_kernel"]),
        Key(f"{arch}.ssm.state_size", "u32", size(config, "linear_key_head_dim")),
        Key(f"{arch}.ssm.group_count", "u32", size(config, "linear_num_key_heads")),
        Key(f"{arch}.ssm.time_step_rank", "u32", dims["linear_value_heads"]),
        Key(f"{arch}.ssm.inner_size", "u32", dims["linear_values"]),
        Key(f"{arch}.attention.recurrent_layers", "bools", recurrent),
        Key(f"{arch}.full_attention_interval", "u32", interval or _INTERVAL),
        Key(f"{arch}.rope.dimension_count", "u32", int(sizes.head_dim * sizes.rope["partial_rotary_factor"])),
    ]


def has_delta_net(config: Config, layer: int) -> bool:
    """Whether a layer has Gated DeltaNet in place of attention."""
    kinds = config.get("layer_types")
    if kinds:
        return bool(kinds[layer] == "linear_attention")
    return (layer + 1) % int(given(config, "full_attention_interval", default=_INTERVAL)) != 0
