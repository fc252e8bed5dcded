"""Ollama's built-in chat templates, and which of them `ollama create` would store for a GGUF.

If a Modelfile has no TEMPLATE, `create` compares the GGUF's Jinja template with every entry of an index. The index is
inside the `ollama` program. If the nearest entry is at a Levenshtein distance under 100, `create` stores its Go
template (template.Named in template/template.go of ollama/ollama). The index is Ollama's: quantkit holds no copy, and
reads it from the program of this machine.
"""

import json
import mmap
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MAX_DISTANCE = 100
"""`create` stores a built-in template at a distance under this, in code points."""

# Go embeds template/index.json as it is: a list of {"template": Jinja, "name": file name} in this spelling.
_START = b'[\n  {\n    "template": "'
_MAX_INDEX_BYTES = 1 << 22


@dataclass(frozen=True)
class BuiltInTemplate:
    """One entry of the index: a Jinja text and the name of the Go template that stands for it."""

    name: str
    jinja: str


@dataclass(frozen=True)
class Replacement:
    """The built-in template that `create` stores for a GGUF, and its distance in code points."""

    name: str
    distance: int


def local_program() -> Path | None:
    """The `ollama` program on PATH, or None."""
    path = shutil.which("ollama")
    return Path(path) if path else None


def read_index(program: Path) -> tuple[BuiltInTemplate, ...] | None:
    """The index inside an `ollama` program, or None if the file cannot be read or holds no index."""
    try:
        with program.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = data.find(_START)
            text = data[at : at + _MAX_INDEX_BYTES].decode("utf-8", "replace") if at >= 0 else ""
    except (OSError, ValueError):  # ValueError: an empty file
        return None
    try:
        entries, _ = json.JSONDecoder().raw_decode(text)
        return tuple(BuiltInTemplate(str(entry["name"]), str(entry["template"])) for entry in entries)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


@cache
def replacement(jinja: str, index: tuple[BuiltInTemplate, ...]) -> Replacement | None:
    """The built-in template that `create` stores in place of `jinja`: the nearest, the first of equally near ones.

    All quantizations of a model have one template, and a comparison may take a second.
    """
    nearest: Replacement | None = None
    for entry in index:
        limit = nearest.distance if nearest else MAX_DISTANCE
        distance = distance_under(jinja, entry.jinja, limit)
        if distance is not None:
            nearest = Replacement(entry.name, distance)
    return nearest


def distance_under(first: str, second: str, limit: int) -> int | None:
    """The Levenshtein distance of two texts in code points, or None if it is `limit` or more.

    Only the diagonals nearer than `limit` can hold such a distance (Ukkonen 1985), so the time is limit x length.
    """
    if len(first) > len(second):
        first, second = second, first
    start = 0
    while start < len(first) and first[start] == second[start]:
        start += 1
    stop = 0
    while stop < len(first) - start and first[-1 - stop] == second[-1 - stop]:
        stop += 1
    first, second = first[start : len(first) - stop], second[start : len(second) - stop]
    if len(second) - len(first) >= limit:
        return None
    above = {column: column for column in range(min(len(second), limit) + 1)}
    for row, character in enumerate(first, 1):
        current: dict[int, int] = {}
        for column in range(max(0, row - limit), min(len(second), row + limit) + 1):
            if column == 0:
                current[0] = row
                continue
            changed = above.get(column - 1, limit) + (character != second[column - 1])
            current[column] = min(changed, above.get(column, limit) + 1, current.get(column - 1, limit) + 1)
        if min(current.values()) >= limit:
            return None
        above = current
    distance = above.get(len(second), limit)
    return distance if distance < limit else None
