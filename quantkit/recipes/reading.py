"""Read a recipe file and the files that it extends, check them, and merge them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from quantkit.errors import UsageError
from quantkit.files import path_is, user_path
from quantkit.recipes.checking import check_table
from quantkit.recipes.lines import Keys, line_of
from quantkit.recipes.schema import BUILT_IN_TEMPLATES, SCHEMA, is_path, looks_like_file
from quantkit.system.python import tomllib
from quantkit.texts.mixed import DEFAULT


@dataclass(frozen=True)
class Layer:
    """One file, one `--set`, or the `--source`.

    Attributes:
        label: the name that errors give it.
        folder: relative paths in it start here.
        numbered: errors give a line.
    """

    label: str
    folder: Path
    text: str
    table: Mapping[str, Any]
    numbered: bool = True

    def place(self, keys: Sequence[str]) -> str:
        """FILE:LINE of `keys`, or of the nearest parent table that the text sets."""
        for count in range(len(keys), 0, -1):
            line = line_of(self.text, keys[:count]) if self.numbered else None
            if line is not None:
                return f"{self.label}:{line}"
        return self.label


@dataclass(frozen=True)
class Opened:
    """A merged recipe: the file, the files that it extends, and the settings.

    Attributes:
        layers: the one with the highest precedence first.
        table: the merged table; its paths are absolute.
    """

    path: Path
    layers: tuple[Layer, ...]
    table: Mapping[str, Any]

    def fail(self, keys: Keys, sentence: str) -> NoReturn:
        """Raise UsageError for `keys`, with the file and line that set them, or else that set their table."""
        for count in range(len(keys), 0, -1):
            for layer in self.layers:
                if _get(layer.table, keys[:count]) is not None:
                    raise UsageError(f"{layer.place(keys[:count])}: {sentence}")
        raise UsageError(f"{self.path}: {sentence}")

    def get(self, *keys: str) -> Any:
        """The value at `keys`, or None."""
        return _get(self.table, keys)


def open_recipe(path: Path, settings: Sequence[str] = (), source: str | None = None) -> Opened:
    """Read a recipe file; `settings` are `KEY=VALUE` texts that override its keys (`calibration.samples=8`).

    `source` overrides all of them in model.source.

    Raises:
        UsageError: a file is unreadable or not TOML; a key is unknown; a value is wrong; `extends` forms a cycle. The
            message names file and line.
    """
    given = [] if source is None else [_source(source)]
    layers = [*given, *(_setting(text) for text in reversed(settings)), *_chain(path)]
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        mistake = check_table(layer.table, SCHEMA)
        if mistake:
            raise UsageError(f"{layer.place(mistake[0])}: {mistake[1]}")
        try:
            merged = _merge(_with_paths(layer), merged)
        except UsageError as error:
            raise UsageError(f"{layer.label}: {error}") from error
    merged.pop("extends", None)
    if merged.get("model", {}).get("revision") == "":
        del merged["model"]["revision"]
    return Opened(path, tuple(layers), merged)


def _chain(path: Path) -> list[Layer]:
    layers: list[Layer] = []
    files: list[Path] = []
    while True:
        files.append(path.resolve())
        layer = _read(path, layers[-1] if layers else None)
        layers.append(layer)
        base = layer.table.get("extends")
        if not isinstance(base, str) or not base or "\0" in base:
            return layers  # `check_table` refuses such a value
        path = path.parent / base
        if path.resolve() in files:
            cycle = " -> ".join(file.name for file in [*files[files.index(path.resolve()) :], path])
            raise UsageError(f"{layer.place(['extends'])}: extends forms a cycle: {cycle}; remove one of them")


def _read(path: Path, extended_by: Layer | None) -> Layer:
    try:
        text = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except OSError as error:
        if extended_by is not None:
            position = extended_by.place(["extends"])
            raise UsageError(f"{position}: extends: cannot read {path}: {error.strerror or error}; check it") from error
        raise UsageError(f"cannot read the recipe {path}: {error.strerror or error}; check the name") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the recipe {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    try:
        return Layer(str(path), path.parent, text, tomllib.loads(text))
    except (ValueError, RecursionError) as error:  # also for a number of too many digits and for deeply nested tables
        raise UsageError(f"the recipe {path} is not TOML: {error}; correct the file") from error


def _source(source: str) -> Layer:
    """The layer of `--source`."""
    return Layer(f"--source {source}", Path(), "", {"model": {"source": source}}, numbered=False)


def _setting(setting: str) -> Layer:
    """The layer of `KEY=VALUE`; a value that is not TOML is a string."""
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
        inner: Any = table
        *parents, last = _first_keys(table)
        for parent in parents:
            inner = inner[parent]
        inner[last] = value.strip()
    return Layer(label, Path(), "", table, numbered=False)


def _first_keys(table: Mapping[str, Any]) -> list[str]:
    keys: list[str] = []
    inner: Any = table
    while isinstance(inner, Mapping):
        keys.append(next(iter(inner)))
        inner = inner[keys[-1]]
    return keys


def _with_paths(layer: Layer) -> dict[str, Any]:
    """A copy of the layer's table with absolute paths."""
    table: dict[str, Any] = _copy(layer.table)
    model, calibration, measure = (table.get(name, {}) for name in ("model", "calibration", "measure"))
    if "source" in model:
        model["source"] = _absolute(model["source"], layer.folder)
        if is_path(model["source"]) and "revision" not in model:
            # the revision of a base recipe belongs to its hub id, not to this folder
            model["revision"] = ""
    if model.get("chat_template", "none") not in BUILT_IN_TEMPLATES:
        model["chat_template"] = str(_rooted(model["chat_template"], layer.folder))
    if "text" in calibration:
        text = calibration["text"]
        calibration["text"] = (
            _absolute_text(text, layer.folder)
            if isinstance(text, str)
            else [_absolute_text(name, layer.folder) for name in text]
        )
    if "texts" in measure:
        measure["texts"] = [_absolute(text, layer.folder) for text in measure["texts"]]
    return table


def _absolute_text(value: str, folder: Path) -> str:
    return value if value == DEFAULT else _absolute(value, folder)


def _absolute(value: str, folder: Path) -> str:
    path = _rooted(value, folder)
    return str(path) if is_path(value) or looks_like_file(value) or path_is(path) else value


def _rooted(value: str, folder: Path) -> Path:
    return Path(os.path.normpath(folder.resolve() / user_path(value)))


def _merge(upper: Mapping[str, Any], lower: Mapping[str, Any]) -> dict[str, Any]:
    """`upper` overrides `lower`: tables merge, every other value is replaced."""
    merged = dict(lower)
    for key, value in upper.items():
        base = lower.get(key)
        both = isinstance(value, Mapping) and isinstance(base, Mapping)
        merged[key] = _merge(value, base) if both else value  # type: ignore[arg-type]
    return merged


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _get(table: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        if not isinstance(table, Mapping) or key not in table:
            return None
        table = table[key]
    return table
