"""Speeds of devices that `measure --speed` measured, kept for later plans of `plan`, `run` and `serve`.

They are in speeds.json of the user's cache folder, by the name of the processor with its threads, and by llama.cpp's
description of a device. `QUANTKIT_SPEEDS` names another file; an empty value keeps none. A speed counts for 90 days,
with the llama.cpp that it was measured with.
"""

import contextlib
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError
from quantkit.files import write_atomically
from quantkit.planning.devices import CPU, gpu_names
from quantkit.planning.speed import DeviceSpeed
from quantkit.private_cache import private_cache_folder, read_private
from quantkit.system import processor

VARIABLE = "QUANTKIT_SPEEDS"
VALID = timedelta(days=90)
_NUMBERS = tuple(item.name for item in fields(DeviceSpeed) if item.name != "by_type")


@dataclass(frozen=True)
class StoredSpeed:
    """A speed and the day of its measurement."""

    speed: DeviceSpeed
    day: date

    @property
    def origin(self) -> str:
        """Where the figure is from, for a note."""
        return f"measured on {self.day.isoformat()} by measure --speed"


def store_speeds(speeds: Sequence[DeviceSpeed], descriptions: Sequence[str], threads: int) -> None:
    """Keep the speeds of the CPU with so many threads and of devices with these descriptions.

    Types of an earlier measurement stay. A file that cannot be read or written is ignored.
    """
    path = _path()
    if path is None:
        return
    entries = dict(_entries(path))
    for key, speed in zip((_cpu(threads), *descriptions), speeds, strict=True):
        entry = {**asdict(speed), "day": date.today().isoformat(), "llama.cpp": _llama_cpp()}
        if (before := _stored(entries.get(key))) is not None:
            entry["by_type"] = {**before.speed.by_type, **speed.by_type}
        entries[key] = entry
    with contextlib.suppress(OSError, QuantkitError):
        write_atomically(path, json.dumps(entries, indent=2) + "\n", mode=0o600)


def stored_speeds(descriptions: Sequence[str], threads: int) -> Mapping[str, StoredSpeed]:
    """The kept speeds by the names of a plan: CPU, and the GPUs with these descriptions.

    Empty if one of them is missing, because half of the overheads would mislead.
    """
    path = _path()
    entries = _entries(path) if path else {}
    names = (CPU, *(gpu_names(len(descriptions)) if descriptions else ()))
    stored = {name: _stored(entries.get(key)) for name, key in zip(names, (_cpu(threads), *descriptions), strict=True)}
    return {} if None in stored.values() else {name: speed for name, speed in stored.items() if speed is not None}


def _path() -> Path | None:
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named) if named else None
    folder = private_cache_folder()
    return folder / "speeds.json" if folder else None


def _cpu(threads: int) -> str:
    return f"{processor.name()}, {threads} threads"


def _llama_cpp() -> str:
    """The package that brings llama.cpp, in the order of preference, and its version; empty without one."""
    for package in ("llama-cpp-python", "xllamacpp"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{package} {importlib.metadata.version(package)}"
    return ""


def _entries(path: Path) -> Mapping[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        entries = json.loads(read_private(path))
        return entries if isinstance(entries, dict) else {}
    return {}


def _stored(entry: Any) -> StoredSpeed | None:
    """A valid entry; None for one that is damaged, too old, or of another llama.cpp."""
    try:
        day = date.fromisoformat(entry["day"])
        numbers = {name: float(entry[name]) for name in _NUMBERS}
        by_type = {str(kind): float(rate) for kind, rate in entry["by_type"].items()}
    except (TypeError, KeyError, ValueError, AttributeError):
        return None
    rates = (numbers["bandwidth"], *by_type.values())
    if entry.get("llama.cpp") != _llama_cpp() or not timedelta() <= date.today() - day <= VALID:
        return None
    if min(rates) <= 0 or min(numbers.values()) < 0:
        return None
    return StoredSpeed(DeviceSpeed(by_type=by_type, **numbers), day)
