"""Why the converter failed: part of the script converter_child.py, without imports of quantkit.

The converter has no exceptions of its own for these faults. A KeyError of a setting means a value that config.json
lacks. A ValueError of its table of names means a tensor that this version does not know.
"""

import re
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

_UNMAPPED = re.compile(r"Can ?not map tensor '([^']*)'")
_NOT_FOUND = re.compile(r"could not find any of: (.*)", re.DOTALL)
_QUOTED = re.compile(r"'([^']+)'")
_TENSOR = re.compile(r"\.(weight|bias)$")
_OTHER_VERSION = re.compile(r"(module|type object) '")
_PROCESSOR, _CONFIG = "preprocessor_config.json", "config.json"


def failure(error: BaseException, logged: str) -> dict[str, str]:
    """The message for the caller: `error` (its kind) and `text`. `logged`: the last error that the converter logged."""
    kind, text = _kind_and_text(error, logged)
    return {"error": kind, "text": text}


def _kind_and_text(error: BaseException, logged: str) -> tuple[str, str]:
    if isinstance(error, ModuleNotFoundError):
        return "missing", error.name or str(error)
    if isinstance(error, ImportError) or (isinstance(error, AttributeError) and _OTHER_VERSION.match(str(error))):
        return "old", _reason(error)
    if isinstance(error, MemoryError):
        return "memory", ""
    if isinstance(error, SystemExit):
        unknown = logged.startswith("Model ") and logged.endswith("is not supported")
        return "architecture" if unknown else "failed", logged or "it exited"
    if isinstance(error, KeyError) and error.args and isinstance(error.args[0], str):
        return _missing_key(error, error.args[0])
    if isinstance(error, FileNotFoundError) and error.filename:
        return "file", Path(str(error.filename)).name
    if isinstance(error, ValueError) and (unmapped := _UNMAPPED.search(str(error))):
        return "name", unmapped.group(1)
    tensor = _tensor_of(error.__traceback__)
    return "failed", f"{_reason(error)}{f', at the tensor {tensor}' if tensor else ''}"


def _missing_key(error: KeyError, key: str) -> tuple[str, str]:
    """A setting of a file of the checkpoint, or a tensor."""
    if _TENSOR.search(key):
        return "no tensor", key
    where = _place(error)
    names = _QUOTED.findall(found.group(1)) if (found := _NOT_FOUND.match(key)) else [key]
    settings = " or ".join(names) or key
    line = where.line or ""
    if "preprocessor_config" in line:
        file = _PROCESSOR
    elif found or "config" in line or "hparams" in line:
        file = _CONFIG
    else:
        return "failed", _reason(error)
    return "setting", f"{settings} in {file} ({_short(where)})"


def _reason(error: BaseException) -> str:
    """The error in one line, with the place in the converter that raised it."""
    lines, where = str(error).strip().splitlines(), _place(error)
    said = lines[0] if lines else ""
    if not said and isinstance(error, AssertionError):
        said = (where.line or "").removeprefix("assert ")
    return f"{type(error).__name__}{f': {said}' if said else ''} ({_short(where)})"


def _place(error: BaseException) -> Any:
    return traceback.extract_tb(error.__traceback__)[-1]


def _short(where: Any) -> str:
    return f"{Path(where.filename).name}, line {where.lineno}"


def _tensor_of(trace: TracebackType | None) -> str | None:
    """The checkpoint's tensor that the converter was at."""
    for frame, _ in traceback.walk_tb(trace):
        name = frame.f_locals.get("name")
        if frame.f_code.co_name == "prepare_tensors" and isinstance(name, str):
            return name
    return None
