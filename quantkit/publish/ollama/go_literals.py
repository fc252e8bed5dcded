"""Numbers, characters and strings of a Go template, as Go's strconv takes them."""

import math
import re

_ESCAPE = (
    r"\\(?:[abfnrtv\\{q}]|x[0-9a-fA-F]{{2}}|[0-3][0-7]{{2}}"
    r"|u(?:[0-9a-ce-fA-CE-F][0-9a-fA-F]{{3}}|[dD][0-7][0-9a-fA-F]{{2}})"
    r"|U(?:000[0-9a-fA-F]|0010)[0-9a-fA-F]{{4}})"
)
_STRING = re.compile(rf'"(?:[^"\\\n]|{_ESCAPE.format(q=chr(34))})*"')
_CHARACTER = re.compile(rf"'(?:[^'\\\n]|{_ESCAPE.format(q=chr(39))})'")
_INTEGER = re.compile(r"[+-]?(0[xX](_?[0-9a-fA-F])+|0[oO]?(_?[0-7])+|0[bB](_?[01])+|0|[1-9](_?[0-9])*)")
_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_DECIMAL = re.compile(rf"[+-]?({_DIGITS}\.?({_DIGITS})?|\.{_DIGITS})([eE][+-]?{_DIGITS})?")
_HEXADECIMAL = re.compile(r"[+-]?0[xX](_?[0-9a-fA-F])*(\.[0-9a-fA-F]*(_[0-9a-fA-F]+)*)?[pP][+-]?[0-9]+(_[0-9]+)*")


def is_string(text: str) -> bool:
    """Whether Go's Unquote takes a string in double quotes or backquotes, of which the quotes are known to close."""
    return text.startswith("`") or bool(_STRING.fullmatch(text))


def is_number(text: str) -> bool:
    """Whether Go takes a number, or a character in quotes: by ParseInt, ParseUint, ParseFloat and UnquoteChar."""
    if text.startswith("'"):
        return bool(_CHARACTER.fullmatch(text))
    if text.endswith("i"):
        parts = re.fullmatch(r"([+-]?[^+-]+(?:(?<=[eEpP])[+-][0-9_]+)?)([+-].+)?", text[:-1])
        return parts is not None and all(_is_float(part) for part in parts.groups() if part)
    if _INTEGER.fullmatch(text):
        digits = re.sub(r"^([+-]?)0(?=[0-7_])", r"\g<1>0o", text).replace("_", "")
        return len(digits) < 100 and -(2**63) <= int(digits, 0) < 2**64
    # Without one of these marks Go calls a float that is too large for an integer an overflow.
    return any(mark in text for mark in ".eEpP") and _is_float(text)


def _is_float(text: str) -> bool:
    """Whether Go's ParseFloat accepts the text: underscores stand between digits, and the value does not overflow."""
    try:
        if _HEXADECIMAL.fullmatch(text):
            return math.isfinite(float.fromhex(text.replace("_", "")))
        return bool(_DECIMAL.fullmatch(text)) and math.isfinite(float(text.replace("_", "")))
    except (ValueError, OverflowError):
        return False
