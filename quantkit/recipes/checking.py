"""A recipe against its schema: the first mistake, as a sentence."""

import difflib
from collections.abc import Mapping
from typing import Any

from quantkit.errors import UsageError
from quantkit.recipes.schema import Either, Kind, Table


def check_table(
    table: Mapping[str, Any], kind: Table, keys: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], str] | None:
    """The first mistake of `table`: the keys that lead to it, and a sentence; None for a correct table."""
    for key, value in table.items():
        here = (*keys, key)
        if key in kind.keys:
            mistake = _check(value, kind.keys[key], here)
        elif kind.more is not None and kind.more_names(key):
            mistake = _check(value, kind.more, here)
        else:
            mistake = here, _unknown(key, kind, keys)
        if mistake:
            return mistake
    return None


def _check(value: Any, kind: Kind, keys: tuple[str, ...]) -> tuple[tuple[str, ...], str] | None:
    if isinstance(kind, Either):
        kind = kind.table if isinstance(value, Mapping) else kind.value
    if isinstance(kind, Table):
        if not isinstance(value, Mapping):
            return keys, f"{_named(keys)} is {value!r}, not a table"
        return check_table(value, kind, keys)
    if not kind.fits(value):
        return keys, f"{_named(keys)} is {value!r}, not {kind.what}"
    if _has_nul(value):
        return keys, f"{_named(keys)} has a NUL character; remove it"
    try:
        mistake = kind.check(value)
    except UsageError as error:
        return keys, f"{_named(keys)}: {error}"
    return (keys, f"{_named(keys)} {mistake}") if mistake else None


def _has_nul(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_nul(item) for pair in value.items() for item in pair)
    return any(map(_has_nul, value)) if isinstance(value, list) else isinstance(value, str) and "\0" in value


def _named(keys: tuple[str, ...]) -> str:
    """ "eos_token of [model]"."""
    return f"{keys[-1]} of [{'.'.join(keys[:-1])}]" if keys[:-1] else keys[-1]


def _unknown(key: str, kind: Table, keys: tuple[str, ...]) -> str:
    known = (*kind.keys, *kind.names)
    close = difflib.get_close_matches(key, known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else f"; known are {', '.join(kind.keys)}"
    where = f"[{'.'.join(keys)}]" if keys else "the recipe"
    return f"{where} has the unknown key {key!r}{hint}"
