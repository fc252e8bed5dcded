"""The origin record (quantkit.json) next to an output, as `inspect` shows it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE_NAME, FORMAT, VERSION = "quantkit.json", "quantkit-origin", 1


def read_record(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of a folder's quantkit.json by output name; {} if it is absent or not readable.

    Of the errors per tensor only the largest remains.
    """
    try:
        record = json.loads((folder / FILE_NAME).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    outputs = record.get("outputs") if isinstance(record, dict) and record.get("format") == FORMAT else None
    if not isinstance(outputs, dict):
        return {}
    return {str(name): _short(entry) for name, entry in outputs.items() if isinstance(entry, dict)}


def _short(entry: Mapping[str, Any]) -> dict[str, Any]:
    short = {key: value for key, value in entry.items() if key not in ("relative_error", "relative_error_method")}
    errors = entry.get("relative_error")
    if isinstance(errors, dict) and errors:
        worst = max(errors, key=lambda name: errors[name] if isinstance(errors[name], int | float) else -1.0)
        short["worst_relative_error"] = {"tensor": worst, "value": errors[worst]}
    return short


def entry_of(record: Mapping[str, dict[str, Any]], file: Path) -> dict[str, Any] | None:
    """The entry that lists `file`."""
    return next((entry for entry in record.values() if file.name in _files(entry)), None)


def changed_since(entry: Mapping[str, Any], folder: Path) -> list[str]:
    """A sentence for each file of the entry that is missing or differs in size from the record."""
    words = []
    for name, about in _files(entry).items():
        expected = about.get("bytes") if isinstance(about, dict) else None
        path = folder / name
        if not path.is_file():
            words.append(f"{name}, which {FILE_NAME} records, is missing")
        elif isinstance(expected, int) and path.stat().st_size != expected:
            words.append(
                f"{name} has {path.stat().st_size} bytes, not the {expected} of {FILE_NAME}: it is another file"
            )
    return words


def _files(entry: Mapping[str, Any]) -> dict[str, Any]:
    files = entry.get("files")
    return files if isinstance(files, dict) else {}
