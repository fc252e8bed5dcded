"""The origin record (quantkit.json) next to an output: its one parser, and what `inspect` shows of it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quantkit.checkpoint.jsonfile import shown
from quantkit.errors import CheckpointError

FILE_NAME, FORMAT, VERSION = "quantkit.json", "quantkit-origin", 1

Fault = str | None
"""What is wrong with a value, as the rest of a sentence that begins with its name; None if nothing is."""
Fits = Callable[[Any], Fault]


def parse_record(path: Path) -> dict[str, Any]:
    """The whole record of the file `path`, which exists.

    Raises:
        CheckpointError: the file is unreadable, not JSON, or of another format or version. Or a value cannot be written
            again (NaN, a lone surrogate), or a field has another type than quantkit writes.
    """
    try:
        record = json.loads(path.read_bytes().decode("utf-8"))
        # what json.loads accepts beyond JSON cannot be written again
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from error
    except RecursionError as error:
        raise CheckpointError(f"{path} is nested too deeply; {_WAY_OUT}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({str(error)[:80]}); {_WAY_OUT}") from error
    fault = _RECORD(record)
    if fault is not None:
        raise CheckpointError(f"{path}: the record{fault}; {_WAY_OUT}")
    return dict(record)


def read_record(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of a folder's quantkit.json by output name; {} without such a file.

    Of the errors per tensor only the largest remains. Raises CheckpointError as `parse_record` does.
    """
    path = folder / FILE_NAME
    return {name: _short(entry) for name, entry in parse_record(path)["outputs"].items()} if path.exists() else {}


def readable_record(folder: Path) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """The entries as `read_record` gives them, and no note; or no entries, and the fault of the file as a note."""
    try:
        return read_record(folder), ()
    except CheckpointError as error:
        return {}, (str(error),)


def _short(entry: Mapping[str, Any]) -> dict[str, Any]:
    short = {key: value for key, value in entry.items() if key not in ("relative_error", "relative_error_method")}
    errors = entry.get("relative_error")
    if errors:
        worst = max(errors, key=lambda name: errors[name])
        short["worst_relative_error"] = {"tensor": worst, "value": errors[worst]}
    return short


def entry_of(record: Mapping[str, dict[str, Any]], file: Path) -> dict[str, Any] | None:
    """The entry that lists `file`."""
    return next((entry for entry in record.values() if file.name in entry.get("files", {})), None)


def changed_since(entry: Mapping[str, Any], folder: Path) -> list[str]:
    """A sentence for each file of the entry that is missing or differs in size from the record."""
    words = []
    for name, about in entry.get("files", {}).items():
        expected = about.get("bytes")
        path = folder / name
        if not path.is_file():
            words.append(f"{name}, which {FILE_NAME} records, is missing")
        elif expected is not None and path.stat().st_size != expected:
            words.append(
                f"{name} has {path.stat().st_size} bytes, not the {expected} of {FILE_NAME}: it is another file"
            )
    return words


def _is(kind: type | tuple[type, ...], expected: str) -> Fits:
    def fits(value: Any) -> Fault:
        right = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
        return None if right else f" is {shown(json.dumps(value))}, not {expected}"

    return fits


_TEXT, _BOOL = _is(str, "a text"), _is(bool, "true or false")
_COUNT, _NUMBER, _OBJECT = _is(int, "a whole number"), _is((int, float), "a number"), _is(dict, "an object")


def _or_null(fits: Fits) -> Fits:
    return lambda value: None if value is None else fits(value)


def _list_of(fits: Fits) -> Fits:
    is_list = _is(list, "a list")

    def check(value: Any) -> Fault:
        if (fault := is_list(value)) is not None:
            return fault
        return next((f"[{n}]{fault}" for n, item in enumerate(value) if (fault := fits(item)) is not None), None)

    return check


_TEXTS = _list_of(_TEXT)


def _text_or_texts(value: Any) -> Fault:
    return _TEXTS(value) if isinstance(value, list) else _TEXT(value)


def _map_of(fits: Fits) -> Fits:
    def check(value: Any) -> Fault:
        if (fault := _OBJECT(value)) is not None:
            return fault
        return next((f".{shown(n)}{fault}" for n, item in value.items() if (fault := fits(item)) is not None), None)

    return check


def _object(fields: Mapping[str, Fits], required: tuple[str, ...] = ()) -> Fits:
    """An object; other fields than `fields` may have any value, as a later version may add some."""

    def check(value: Any) -> Fault:
        if (fault := _OBJECT(value)) is not None:
            return fault
        if (missing := next((name for name in required if name not in value), None)) is not None:
            return f" lacks {missing}"
        faults = (f".{n}{fault}" for n, fits in fields.items() if n in value and (fault := fits(value[n])) is not None)
        return next(faults, None)

    return check


_ENTRY = _object(
    {
        "tool": _object({"name": _TEXT, "version": _TEXT, "kernels": _TEXT, "c_kernels": _list_of(_TEXT)}),
        "written": _TEXT,
        "origin": _object(
            {
                "source": _TEXT,
                "revision": _or_null(_TEXT),
                "header_sha256": _map_of(_TEXT),
                "base": _TEXT,
                "chat_template": _TEXT,
                "converter": _TEXT,
                "adapters": _list_of(
                    _object(
                        {
                            "source": _TEXT,
                            "revision": _or_null(_TEXT),
                            "sha256": _TEXT,
                            "config_sha256": _TEXT,
                            "kind": _TEXT,
                            "rank": _COUNT,
                            "scale": _NUMBER,
                            "base": _or_null(_TEXT),
                        }
                    )
                ),
            }
        ),
        "type": _TEXT,
        "files": _map_of(_object({"bytes": _COUNT, "sha256": _or_null(_TEXT)})),
        "checks": _list_of(_object({"name": _TEXT, "status": _TEXT, "detail": _TEXT}, ("name", "status"))),
        "relative_error": _map_of(_NUMBER),
        "relative_error_method": _TEXT,
        "seconds": _map_of(_NUMBER),
        "seconds_cover": _list_of(_TEXT),
        "peak_memory_bytes": _COUNT,
        "threads": _COUNT,
        "warnings": _list_of(_TEXT),
        "calibration": _object(
            {
                "text": _text_or_texts,
                "sha256": _text_or_texts,
                "samples": _COUNT,
                "samples_per_text": _list_of(_COUNT),
                "tokens_per_sample": _COUNT,
                "chat_template": _BOOL,
            }
        ),
        "options": _OBJECT,
        "family": _TEXT,
        "bits_per_weight": _NUMBER,
        "parameters": _COUNT,
        "type_mix": _map_of(_COUNT),
        "architecture": _or_null(_TEXT),
        "quantized_linears": _COUNT,
        "kept_linears": _list_of(_TEXT),
        "remote_code": _object({"files": _map_of(_TEXT), "repositories": _list_of(_TEXT)}),
    }
)
_RECORD = _object(
    {
        "format": lambda value: None if value == FORMAT else f" is {shown(json.dumps(value))}, not {FORMAT!r}",
        "version": lambda value: None if value == VERSION else f" is {shown(json.dumps(value))}, not {VERSION}",
        "outputs": _map_of(_ENTRY),
    },
    ("format", "version", "outputs"),
)
_WAY_OUT = "move the file away, or convert again"
