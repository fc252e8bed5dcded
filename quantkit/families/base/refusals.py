"""Checks of config.json settings that llama.cpp supports with one value only: an error, or a caution."""

import math
from collections.abc import Mapping
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size

# llama.cpp's LLM_FFN_GELU reads the tanh form from a table; the table's error exceeds the gap to the exact form.
GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python", "gelu_accurate")
SILU = ("silu", "swish")


def only(config: Mapping[str, Any], name: str, *allowed: object, family: str) -> None:
    """Refuse a setting whose value is not in `allowed`; an absent setting and None pass.

    Raises:
        UnsupportedError: llama.cpp does not run the family with this setting.
    """
    value = config.get(name)
    if value is None or any(value == good and isinstance(value, bool) == isinstance(good, bool) for good in allowed):
        return
    supported = " or ".join(str(good).lower() if isinstance(good, bool) else str(good) for good in allowed)
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    raise UnsupportedError(
        f"config.json: {name} is {shown}, but llama.cpp runs {family} only with {supported}; a GGUF cannot express this"
        " setting"
    )


def only_theta(config: Mapping[str, Any], theta: float, family: str) -> None:
    """Refuse another base of a tower's rotary positions than `theta`, a constant of llama.cpp's graph.

    Raises:
        UnsupportedError: llama.cpp would ignore the base, or a scaling.
    """
    rope = config.get("rope_parameters")
    for settings in (config, rope if isinstance(rope, Mapping) else {}):
        only(settings, "rope_theta", theta, family=family)
        only(settings, "rope_type", "axial", "default", family=family)


def plain_yarn(config: Mapping[str, Any], family: str) -> None:
    """Refuse YaRN settings that differ from llama.cpp's constants; most of its architectures read only the factor.

    The constants are beta_fast 32, beta_slow 1 and an attention factor of 0.1 ln(factor) + 1 (llama-context.cpp).
    transformers has the same defaults.

    Raises:
        UnsupportedError: a setting that llama.cpp would ignore.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if isinstance(rope, Mapping) and isinstance(rope.get("full_attention"), Mapping):
        rope = rope["full_attention"]
    if not isinstance(rope, Mapping) or (rope.get("rope_type") or rope.get("type")) != "yarn":
        return
    with_yarn = f"{family} with YaRN"
    only(rope, "beta_fast", 32, family=with_yarn)
    only(rope, "beta_slow", 1, family=with_yarn)
    only(rope, "truncate", True, family=with_yarn)
    log_factor = math.log(max(number(rope, "factor") or 1.0, 1.0))
    attention, mscale, all_dims = (number(rope, name) for name in ("attention_factor", "mscale", "mscale_all_dim"))
    if attention is None and mscale and all_dims:
        attention = (0.1 * mscale * log_factor + 1) / (0.1 * all_dims * log_factor + 1)
    built_in = 0.1 * log_factor + 1
    if attention is not None and not math.isclose(attention, built_in, rel_tol=1e-4):
        raise UnsupportedError(
            f"config.json: YaRN's attention_factor is {attention:g}, but llama.cpp runs {with_yarn} only with"
            f" {built_in:g}; a GGUF cannot express this setting"
        )


def window_ignored(sizes: Hyperparameters) -> list[str]:
    """The caution for a sliding window that llama.cpp ignores (Mistral 7B v0.1, Phi-3)."""
    window = optional_size(sizes.config, "sliding_window")
    if window is None or sizes.context is None or window >= sizes.context:
        return []
    return [
        "llama.cpp ignores this model's sliding window and attends to all tokens; the model attends to its last"
        f" {window} tokens, so outputs differ for longer texts"
    ]
