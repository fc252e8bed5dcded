"""The tag plan as a TOML file, which a user may edit and pass back.

Format `quantkit-ollama-plan` version 1. File names are relative to the plan.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import UsageError
from quantkit.publish.ollama.tags import Quantization, TagPlan, check_tag, parse_name
from quantkit.system.python import tomllib

FILE_NAME, FORMAT, VERSION = "ollama-plan.toml", "quantkit-ollama-plan", 1

_HEAD = f"""\
# What `quantkit ollama` publishes. Edit the tags and pass the file back with --plan {FILE_NAME}.
# The first of `tags` is created from the files, and the others are copies of it. `gpu_tags` are the same weights with
# every layer on the GPU; leave the list empty for no such tag.
"""
_TABLE = {"type": str, "files": list, "tags": list, "gpu_tags": list, "modelfile": str, "gpu_modelfile": str}
_TOP = {"format": str, "version": int, "name": str, "quantization": list}


def toml_string(text: str) -> str:
    """A TOML basic string: JSON's spelling, with DEL escaped too, which TOML does not allow."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def write_plan(plan: TagPlan) -> str:
    """The plan's text."""
    lines = [f'{_HEAD}\nformat = "{FORMAT}"', f"version = {VERSION}", f"name = {toml_string(str(plan.name))}"]
    for quantization in plan.quantizations:
        lines += ["", "[[quantization]]"]
        for key in _TABLE:
            value = getattr(quantization, key)
            listed = f"[{', '.join(map(toml_string, value))}]" if isinstance(value, tuple) else toml_string(value)
            lines.append(f"{key} = {listed}")
    return "\n".join(lines) + "\n"


def read_plan(path: Path) -> TagPlan:
    """The plan of a file.

    Raises:
        UsageError: the file is unreadable; a key is unknown or missing; a name or tag is malformed; a tag is repeated.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the plan {path}: {error.strerror or error}; check the path") from error
    except ValueError as error:  # of TOML or of UTF-8
        raise UsageError(f"the plan {path} is not TOML: {error}; correct it") from error
    _check_keys(table, _TOP, f"the plan {path}", table)
    if table["format"] != FORMAT or table["version"] != VERSION:
        raise UsageError(
            f"{path} is {table['format']} version {table['version']}, not {FORMAT} version {VERSION}; write a new"
            " plan without --plan"
        )
    name = parse_name(table["name"])
    if name.tag is not None:
        raise UsageError(f"the plan {path} has the name {name} with a tag; list tags under each [[quantization]] only")
    tables = enumerate(table["quantization"], 1)
    plan = TagPlan(name, tuple(_read(entry, f"[[quantization]] {number} of {path}") for number, entry in tables))
    tags = plan.tags()
    twice = next((tag for tag in tags if tags.count(tag) > 1), None)
    if twice is not None:
        raise UsageError(f"tag {twice!r} is listed twice in {path}; every tag must be unique")
    files = [file for entry in plan.quantizations for file in (entry.modelfile, entry.gpu_modelfile) if file]
    again = next((file for file in files if files.count(file) > 1), None)
    if again is not None:
        raise UsageError(f"the plan {path} writes {again!r} twice; every Modelfile must have a unique name")
    if not plan.quantizations:
        raise UsageError(f"the plan {path} has no [[quantization]]; write a new plan without --plan")
    return plan


def _read(table: Any, where: str) -> Quantization:
    if not isinstance(table, Mapping):
        raise UsageError(f"{where} is not a table; write [[quantization]] and its keys")
    _check_keys({"gpu_tags": [], "gpu_modelfile": "", **table}, _TABLE, where, table)
    listed = {key: _texts(table.get(key, []), f"{key} in {where}") for key in ("files", "tags", "gpu_tags")}
    for key in ("files", "tags"):
        if not listed[key]:
            raise UsageError(f"{where} has no {key}; list at least one")
    for tag in (*listed["tags"], *listed["gpu_tags"]):
        check_tag(tag)
    names = [table["modelfile"], *([table.get("gpu_modelfile", "")] if listed["gpu_tags"] else [])]
    if len(set(names)) != len(names) or any(not file or Path(file).name != file for file in names):
        raise UsageError(f"{where} needs two plain, different file names as modelfile and gpu_modelfile")
    return Quantization(
        type=table["type"],
        files=listed["files"],
        tags=listed["tags"],
        gpu_tags=listed["gpu_tags"],
        modelfile=table["modelfile"],
        gpu_modelfile=table.get("gpu_modelfile", "") if listed["gpu_tags"] else "",
    )


def _texts(value: Iterable[Any], where: str) -> tuple[str, ...]:
    for item in value:
        if not isinstance(item, str) or not item:
            raise UsageError(f"{where} has {item!r}, which is not a text; write it in quotes")
    return tuple(value)


def _check_keys(table: Mapping[str, Any], known: Mapping[str, type], where: str, written: Mapping[str, Any]) -> None:
    for key in written:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else f"; known are {', '.join(known)}"
            raise UsageError(f"{where} has the unknown key {key!r}{hint}")
    for key, kind in known.items():
        if key not in table:
            raise UsageError(f"{where} lacks {key}; add it")
        if not isinstance(table[key], kind) or isinstance(table[key], bool):
            expected = {str: "a text", int: "a whole number", list: "a list"}[kind]
            raise UsageError(f"{key} in {where} is {table[key]!r}, not {expected}")
