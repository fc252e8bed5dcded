"""Settings of config.json that most architectures share: sizes of heads, their default scale."""

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]


def given(config: Config, *keys: str, default: Any = None) -> Any:
    """The first of `keys` that config.json states, else `default`."""
    return next((config[key] for key in keys if config.get(key) is not None), default)


def head_dim(config: Config) -> int:
    """Width of a head: `head_dim`, or the hidden size over the number of heads."""
    hidden, heads = (
        given(config, "hidden_size", "n_embd", "d_model", "dim"),
        given(config, "num_attention_heads", "n_head", "n_heads"),
    )
    return int(given(config, "head_dim", default=hidden // heads))


def by_head_dim(config: Config, _layer: int) -> float:
    """The usual factor on the scores: 1 / sqrt(head_dim)."""
    return float(head_dim(config) ** -0.5)


def partial_rotary(config: Config) -> int:
    """Number of rotated values of a head: the fraction that config.json gives; they come first."""
    rope = config.get("rope_parameters") or {}
    share = given(config, "partial_rotary_factor", "rope_pct", default=rope.get("partial_rotary_factor", 1.0))
    return int(head_dim(config) * share)


def key_value_heads(config: Config) -> int:
    """Number of key-value heads; by default that of the heads."""
    return int(given(config, "num_key_value_heads", "num_attention_heads", "n_head", "n_heads"))
