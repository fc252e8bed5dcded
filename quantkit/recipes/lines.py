"""On which line of a TOML text a key is set: tomllib tells of syntax only."""

import tomllib
from collections.abc import Sequence
from typing import Any

Keys = tuple[str, ...]


def line_of(text: str, keys: Sequence[str]) -> int | None:
    """The line, from 1, where the statement begins that sets `keys` (a table: where it is first spoken of).

    The text is one that tomllib reads. What ends a statement is known without a parser of our own: the lines up to
    there are TOML by themselves, and those that end within it are not.
    """
    lines = text.split("\n")
    whole = 0
    for count in range(1, len(lines) + 1):
        try:
            table = tomllib.loads("\n".join(lines[:count]) + "\n")
        except tomllib.TOMLDecodeError:
            continue
        if _has(table, keys):
            return whole + 1
        whole = count
    return None


def _has(table: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(table, dict) or key not in table:
            return False
        table = table[key]
    return True
