"""The parameters of `PARAMETER name value`, and how their values are written.

Source: Ollama 0.32's api/types.go (Options, FormatParams) and parser/parser.go (deprecatedParameters).
"""

import difflib
import re
import struct
from collections.abc import Mapping

from quantkit.errors import ModelfileError

ParameterValue = str | int | float | bool

PARAMETERS: Mapping[str, type] = {
    "num_ctx": int,
    "num_batch": int,
    "num_gpu": int,
    "main_gpu": int,
    "use_mmap": bool,
    "num_thread": int,
    "draft_num_predict": int,
    "num_keep": int,
    "seed": int,
    "num_predict": int,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "typical_p": float,
    "repeat_last_n": int,
    "temperature": float,
    "repeat_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "stop": str,
}

DEPRECATED = frozenset(
    {
        "penalize_newline",
        "low_vram",
        "f16_kv",
        "logits_all",
        "vocab_only",
        "use_mlock",
        "mirostat",
        "mirostat_tau",
        "mirostat_eta",
    }
)

_BOOLEANS = {**dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True)}
_BOOLEANS |= dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False)
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)


def read_parameter(name: str, text: str) -> ParameterValue:
    """The value of `PARAMETER name text` as Ollama reads it: by Go's ParseInt (64 bit), ParseFloat (32 bit), ParseBool.

    The caller must handle a deprecated name, which Ollama ignores.

    Raises:
        ModelfileError: Ollama does not know the name, or its type cannot read the text.
    """
    kind = _kind(name)
    if kind is str:
        return text
    if kind is bool:
        if text not in _BOOLEANS:
            raise ModelfileError(f"PARAMETER {name} takes true or false, not {text!r}")
        return _BOOLEANS[text]
    if kind is int:
        if not re.fullmatch(r"[+-]?[0-9]+", text, re.ASCII) or not _fits_64_bits(text):
            raise ModelfileError(f"PARAMETER {name} takes a whole number, not {text!r}")
        return int(text)
    if not _DECIMAL.fullmatch(text) or not _fits_float32(float(text)):
        raise ModelfileError(f"PARAMETER {name} takes a number, not {text!r}")
    return float(text)


def format_parameter(name: str, value: ParameterValue) -> str:
    """The text of `value` for `PARAMETER name`, without quotes.

    Raises:
        ModelfileError: Ollama does not know the name or ignores it, or the value is not of its type.
    """
    if name in DEPRECATED:
        raise ModelfileError(f"PARAMETER {name} is deprecated, and Ollama ignores it; leave it out")
    kind = _kind(name)
    if kind is str:
        if not isinstance(value, str):
            raise ModelfileError(f"PARAMETER {name} takes a text, not {value!r}")
        return value
    if kind is bool:
        if not isinstance(value, bool):
            raise ModelfileError(f"PARAMETER {name} takes true or false, not {value!r}")
        return "true" if value else "false"
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        raise ModelfileError(f"PARAMETER {name} takes {'a whole' if kind is int else 'a'} number, not {value!r}")
    text = repr(float(value) if isinstance(value, float) else int(value))
    read_parameter(name, text)
    return text


def _kind(name: str) -> type:
    if name in PARAMETERS:
        return PARAMETERS[name]
    near = difflib.get_close_matches(name.lower(), PARAMETERS, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(PARAMETERS)}"
    raise ModelfileError(f"Ollama has no parameter {name!r}{hint}")


def _fits_64_bits(text: str) -> bool:
    return len(text) < 100 and -(2**63) <= int(text) < 2**63


def _fits_float32(value: float) -> bool:
    try:
        struct.pack("<f", value)
    except OverflowError:
        return False
    return value == value and abs(value) != float("inf")
