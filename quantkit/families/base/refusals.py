"""Settings of config.json that llama.cpp supports with one value only: refused, or reported as a caution."""

import math
from collections.abc import Mapping
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size

# llama.cpp's LLM_FFN_GELU is the tanh form out of a table; the exact form differs from it by less than the table does.
GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python", "gelu_accurate")
SILU = ("silu", "swish")


def only(config: Mapping[str, Any], name: str, *allowed: object, family: str) -> None:
    """Refuse a setting that is given and is not one of `allowed`; None counts as not given.

    Raises:
        UnsupportedError: llama.cpp does not run the family with this setting.
    """
    value = config.get(name)
    if value is None or any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in allowed):
        return
    known = " or ".join(str(each).lower() if isinstance(each, bool) else str(each) for each in allowed)
    said = str(value).lower() if isinstance(value, bool) else repr(value)
    raise UnsupportedError(
        f"config.json: {name} is {said}, but llama.cpp runs {family} only with {known}; no GGUF can express it"
    )


def plain_yarn(config: Mapping[str, Any], family: str) -> None:
    """Refuse YaRN with settings other than the factor: most of llama.cpp's architectures read only the factor.

    The rest is built in: beta_fast 32, beta_slow 1, an attention factor of 0.1 ln(factor) + 1 (llama-context.cpp),
    which are transformers' defaults too.

    Raises:
        UnsupportedError: a setting that llama.cpp would ignore.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, Mapping) or (rope.get("rope_type") or rope.get("type")) != "yarn":
        return
    named = f"{family} with YaRN"
    only(rope, "beta_fast", 32, family=named)
    only(rope, "beta_slow", 1, family=named)
    only(rope, "truncate", True, family=named)
    stretch = math.log(max(number(rope, "factor") or 1.0, 1.0))
    given, mscale, all_dims = (number(rope, name) for name in ("attention_factor", "mscale", "mscale_all_dim"))
    if given is None and mscale and all_dims:
        given = (0.1 * mscale * stretch + 1) / (0.1 * all_dims * stretch + 1)
    built_in = 0.1 * stretch + 1
    if given is not None and not math.isclose(given, built_in, rel_tol=1e-4):
        raise UnsupportedError(
            f"config.json: YaRN's attention_factor is {given:g}, but llama.cpp runs {named} only with {built_in:g};"
            " no GGUF can express it"
        )


def window_ignored(sizes: Hyperparameters) -> list[str]:
    """The caution for a sliding window that llama.cpp ignores (Mistral 7B v0.1, Phi-3): it attends to all tokens."""
    window = optional_size(sizes.config, "sliding_window")
    if window is None or sizes.context is None or window >= sizes.context:
        return []
    return [
        f"the model attends to its last {window} tokens, llama.cpp to the whole text: a longer one reads otherwise than"
        " in the checkpoint"
    ]
