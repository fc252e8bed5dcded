"""Write a merged recipe as one TOML file that every command with a recipe reads."""

import json
from collections.abc import Mapping
from typing import Any


def write_recipe(table: Mapping[str, Any]) -> str:
    """TOML text of a recipe's table: strings, numbers, booleans, lists of them, and tables."""
    values = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    tables = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in values.items()]
    for key, value in tables.items():
        lines += ["", f"[{_key(key)}]"] + [f"{_key(name)} = {_value(item)}" for name, item in value.items()]
    return "\n".join(lines) + "\n"


def _key(key: str) -> str:
    return key if key and all(char.isascii() and (char.isalnum() or char in "_-") for char in key) else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return _text(value) if isinstance(value, str) else repr(value)


def _text(value: str) -> str:
    # JSON and TOML share their escapes, except for DEL, which JSON does not escape
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
