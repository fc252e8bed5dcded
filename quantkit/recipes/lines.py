"""The line of a TOML text that sets a key; tomllib reports lines of syntax errors only."""

from collections.abc import Sequence
from typing import Any

from quantkit.system.python import tomllib

Keys = tuple[str, ...]


def line_of(text: str, keys: Sequence[str]) -> int | None:
    """The line, from 1, on which the statement that sets `keys` begins; for a table, its first mention.

    `text` is valid TOML. This needs no parser: the lines up to the end of a statement are valid TOML; those up to a
    place within it are not.
    """
    lines = text.split("\n")
    complete = 0
    for count in range(1, len(lines) + 1):
        try:
            table = tomllib.loads("\n".join(lines[:count]) + "\n")
        except tomllib.TOMLDecodeError:
            continue
        if _has(table, keys):
            return complete + 1
        complete = count
    return None


def _has(table: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(table, dict) or key not in table:
            return False
        table = table[key]
    return True
