"""A recipe with everything in one file: what was baked, to be read again by any command that takes a recipe."""

import json
from collections.abc import Mapping
from typing import Any


def write_recipe(table: Mapping[str, Any]) -> str:
    """TOML of a recipe's table: texts, numbers, truth values, lists of those, and tables."""
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    tables = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    for key, value in tables.items():
        lines += ["", f"[{_key(key)}]"] + [f"{_key(name)} = {_value(each)}" for name, each in value.items()]
    return "\n".join(lines) + "\n"


def _key(key: str) -> str:
    return key if key and all(char.isascii() and (char.isalnum() or char in "_-") for char in key) else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_value(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return _text(value) if isinstance(value, str) else repr(value)


def _text(value: str) -> str:
    # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
