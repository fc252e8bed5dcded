"""A recipe's file and the ones it extends, read, checked and laid over each other."""

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from quantkit.errors import UsageError
from quantkit.files import user_path
from quantkit.recipes.lines import Keys, line_of
from quantkit.recipes.schema import (
    BUILT_IN_TEMPLATES,
    SCHEMA,
    check_table,
    is_path,
    looks_like_file,
)


@dataclass(frozen=True)
class Layer:
    """One file, or one `--set`; `label` is what a mistake in it is told under, `folder` what its paths start from."""

    label: str
    folder: Path
    text: str
    table: Mapping[str, Any]
    numbered: bool = True

    def place(self, keys: Sequence[str]) -> str:
        """FILE:LINE of the nearest of `keys` that stands in it."""
        for count in range(len(keys), 0, -1):
            line = line_of(self.text, keys[:count]) if self.numbered else None
            if line is not None:
                return f"{self.label}:{line}"
        return self.label


@dataclass(frozen=True)
class Opened:
    """A recipe with all it extends and what was set over it. `layers`: the topmost first; paths are absolute."""

    path: Path
    layers: tuple[Layer, ...]
    table: Mapping[str, Any]

    def fail(self, keys: Keys, sentence: str) -> NoReturn:
        """Raise UsageError about the keys, with the file and line that set them, else that of their table."""
        for count in range(len(keys), 0, -1):
            for layer in self.layers:
                if _get(layer.table, keys[:count]) is not None:
                    raise UsageError(f"{layer.place(keys[:count])}: {sentence}")
        raise UsageError(f"{self.path}: {sentence}")

    def get(self, *keys: str) -> Any:
        """The value, or None."""
        return _get(self.table, keys)


def open_recipe(path: Path, settings: Sequence[str] = ()) -> Opened:
    """The recipe in a file, with `KEY=VALUE` settings over it (`calibration.samples=8`).

    Raises:
        UsageError: with file and line: not to be read, not TOML, an unknown key, a wrong value, a circle of extends.
    """
    layers = [*(_setting(text) for text in reversed(settings)), *_chain(path)]
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        wrong = check_table(layer.table, SCHEMA)
        if wrong:
            raise UsageError(f"{layer.place(wrong[0])}: {wrong[1]}")
        try:
            merged = _over(_with_paths(layer), merged)
        except UsageError as error:
            raise UsageError(f"{layer.label}: {error}") from error
    merged.pop("extends", None)
    if merged.get("model", {}).get("revision") == "":
        del merged["model"]["revision"]
    return Opened(path, tuple(layers), merged)


def _chain(path: Path) -> list[Layer]:
    layers: list[Layer] = []
    seen: list[Path] = []
    while True:
        seen.append(path.resolve())
        layer = _read(path, layers[-1] if layers else None)
        layers.append(layer)
        base = layer.table.get("extends")
        if not isinstance(base, str) or not base or "\0" in base:
            return layers  # `check_table` refuses such a value
        path = path.parent / base
        if path.resolve() in seen:
            circle = " -> ".join(each.name for each in [*seen[seen.index(path.resolve()) :], path])
            raise UsageError(f"{layer.place(['extends'])}: extends goes in a circle: {circle}; take one of them out")


def _read(path: Path, extended_by: Layer | None) -> Layer:
    try:
        text = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except OSError as error:
        if extended_by is not None:
            raise UsageError(
                f"{extended_by.place(['extends'])}: extends names {path}, which cannot be read:"
                f" {error.strerror or error}"
            ) from error
        raise UsageError(f"cannot read the recipe {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the recipe {path} is not UTF-8 text (byte {error.start})") from error
    try:
        return Layer(str(path), path.parent, text, tomllib.loads(text))
    except (ValueError, RecursionError) as error:  # also a number of too many digits, and tables nested too deeply
        raise UsageError(f"the recipe {path} is not TOML: {error}") from error


def _setting(setting: str) -> Layer:
    """`KEY=VALUE`, the value as TOML has it; one that is none is a text."""
    key, equals, value = setting.partition("=")
    label = f"--set {setting}"
    if not equals or not key.strip():
        raise UsageError(f"{label} is not KEY=VALUE; write --set calibration.samples=8")
    try:
        table = tomllib.loads(setting)
    except (ValueError, RecursionError):
        try:
            table = tomllib.loads(f"{key} = ''")
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{label}: {key!r} is not a key; write --set calibration.samples=8") from error
        at: Any = table
        *parents, last = _first_keys(table)
        for parent in parents:
            at = at[parent]
        at[last] = value.strip()
    return Layer(label, Path(), "", table, numbered=False)


def _first_keys(table: Mapping[str, Any]) -> list[str]:
    keys: list[str] = []
    at: Any = table
    while isinstance(at, Mapping):
        keys.append(next(iter(at)))
        at = at[keys[-1]]
    return keys


def _with_paths(layer: Layer) -> dict[str, Any]:
    """The layer's table, in which what names files names them from the root."""
    found: dict[str, Any] = _copy(layer.table)
    model, calibration, measure = (found.get(name, {}) for name in ("model", "calibration", "measure"))
    if "source" in model:
        model["source"] = _absolute(model["source"], layer.folder)
        if is_path(model["source"]) and "revision" not in model:
            # a revision that a base recipe asks of its hub id says nothing about a folder
            model["revision"] = ""
    if model.get("chat_template", "none") not in BUILT_IN_TEMPLATES:
        model["chat_template"] = str(_rooted(model["chat_template"], layer.folder))
    if "text" in calibration:
        calibration["text"] = _absolute(calibration["text"], layer.folder)
    if "texts" in measure:
        measure["texts"] = [_absolute(each, layer.folder) for each in measure["texts"]]
    return found


def _absolute(value: str, folder: Path) -> str:
    path = _rooted(value, folder)
    return str(path) if is_path(value) or looks_like_file(value) or path.exists() else value


def _rooted(value: str, folder: Path) -> Path:
    return Path(os.path.normpath(folder.resolve() / user_path(value)))


def _over(top: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merge, everything else is replaced."""
    merged = dict(below)
    for key, value in top.items():
        under = below.get(key)
        both = isinstance(value, Mapping) and isinstance(under, Mapping)
        merged[key] = _over(value, under) if both else value  # type: ignore[arg-type]
    return merged


def _copy(value: Any) -> Any:
    return {key: _copy(each) for key, each in value.items()} if isinstance(value, Mapping) else value


def _get(table: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        if not isinstance(table, Mapping) or key not in table:
            return None
        table = table[key]
    return table
