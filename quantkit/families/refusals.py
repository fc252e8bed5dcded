"""Settings of config.json that change the model and that llama.cpp has built in one way only."""

from collections.abc import Mapping
from typing import Any

from quantkit.errors import UnsupportedError

# llama.cpp's LLM_FFN_GELU is the tanh form out of a table; the exact form differs from it by less than the table does.
GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python", "gelu_accurate")
SILU = ("silu", "swish")


def only(config: Mapping[str, Any], name: str, *allowed: object, family: str) -> None:
    """Refuse a setting that is given and is not one of `allowed`; None counts as not given.

    Raises:
        UnsupportedError: the family with this setting is another model than the one that llama.cpp runs.
    """
    value = config.get(name)
    if value is None or any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in allowed):
        return
    known = " or ".join(str(each).lower() if isinstance(each, bool) else str(each) for each in allowed)
    said = str(value).lower() if isinstance(value, bool) else repr(value)
    raise UnsupportedError(
        f"config.json: {name} is {said}, but llama.cpp runs {family} only with {known}; no GGUF can express it"
    )
