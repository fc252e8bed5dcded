"""Read JSON of unknown origin; malformed files raise an error of one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantkit.errors import CheckpointError, ReadError


def parse_object(data: bytes, document: str, parse_int: Callable[[str], int] = int) -> dict[str, Any]:
    """The JSON object in `data`; `document` names it in messages ("config.json of FOLDER").

    Raises CheckpointError, also for a key that appears twice, because parsers disagree on its value.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_int=parse_int)
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{document} is not UTF-8 text (byte 0x{data[error.start]:02x} at position {error.start}); download it"
            " again"
        ) from error
    except _DuplicateKey as error:
        raise CheckpointError(f"{document} has the key {shown(error.key)} twice; download it again") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{document} is not valid JSON ({_reason(error)}); download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{document} holds a JSON {type(value).__name__}, not an object; download it again")
    return value


def read_hints(path: Path) -> dict[str, Any]:
    """The JSON object of a file that only has hints (generation_config.json); {} if it is missing or malformed.

    Raises ReadError if the disk cannot read the file, so that its content is unknown.
    """
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return {}
    except OSError as error:
        raise ReadError(f"{path} cannot be read ({error.strerror or error}); check the disk and rerun") from error
    return value if isinstance(value, dict) else {}


def shown(text: str, limit: int = 80) -> str:
    """A name from a file for a message: quoted, printable, at most one line."""
    return ascii(text if len(text) <= limit else text[:limit] + "...")


class _DuplicateKey(Exception):
    def __init__(self, key: str) -> None:
        self.key = key


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys: set[str] = set()
        for key, _ in pairs:
            if key in keys:
                raise _DuplicateKey(key)
            keys.add(key)
    return values


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    return "a number has too many digits"
