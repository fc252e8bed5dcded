"""The schema of a recipe as data: every table, every key, and the values that it takes."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.chat import BUILT_IN, built_in
from quantkit.gguf.file_types import FILE_TYPES, file_type
from quantkit.packed.registry import FORMATS
from quantkit.publish.ollama.tags import parse_name
from quantkit.texts.dataset_name import parse_dataset
from quantkit.texts.mixed import DEFAULT

FOLDERS = tuple(FORMATS)
"""The formats of folders, by the keys of [formats]."""
ROLES = ("system", "user", "assistant")
VERSION = 1

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_NUMBER = re.compile(r"\d+(\.\d*)?|\.\d+")
_SIZE = re.compile(r"\d+(\.\d+)?\s*[kmgt]?i?b?", re.IGNORECASE)


@dataclass(frozen=True)
class Value:
    """The value of a key.

    Attributes:
        what: the kind of value in words, for "KEY is X, not WHAT".
        fits: whether a value is of this kind.
        check: the end of the sentence "KEY of [TABLE] ..." for a wrong value of this kind, or raises UsageError.
    """

    what: str
    fits: Callable[[Any], bool]
    check: Callable[[Any], str | None] = lambda _value: None


@dataclass(frozen=True)
class Table:
    """A table with `keys`.

    Attributes:
        more: the kind of the values of other keys; None if other keys are errors.
        more_names: whether another key's name is allowed.
        names: examples of such names; a misspelt key is compared with them.
    """

    keys: Mapping[str, "Kind"]
    more: "Kind | None" = None
    more_names: Callable[[str], bool] = lambda _name: True
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Either:
    """A plain value, or a table."""

    value: Value
    table: Table


Kind = Value | Table | Either


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(_is_text(item) for item in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_limit(value: Any) -> bool:
    return (_is_number(value) and value >= 0) or (
        isinstance(value, str) and bool(_NUMBER.fullmatch(value.removesuffix("%").strip()))
    )


def _whole(least: int) -> Value:
    return Value(
        f"a whole number of at least {least}" if least else "a whole number",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
    )


def _plain_name(value: str) -> str | None:
    if Path(value).name != value or value in (".", "..") or not value.isprintable():
        return f"is {value!r}, which is not a plain name; choose the folder with -o"
    return None


def _source(value: str) -> str | None:
    if is_path(value) or re.fullmatch(r"(modelscope:)?" + _REPO.pattern + r"(@.+)?", value, re.ASCII):
        return None
    return f"is {value!r}, which is neither a hub id ORG/NAME nor a folder; write a folder as ./NAME"


def _template(value: str) -> str | None:
    if value != "none" and not is_path(value) and not value.endswith((".jinja", ".txt")):
        built_in(value)
    return None


def _types(value: list[str]) -> str | None:
    if not value:
        return "is empty; list at least one type, such as q4_0, or remove the key"
    for name in value:
        file_type(name)
    return None


def _repo(value: str) -> str | None:
    return None if _REPO.fullmatch(value) else f"is {value!r}, which is not a hub id; write ORG/NAME"


def _ollama_name(value: str) -> str | None:
    parse_name(value)
    return None


def _calibration_texts(value: str | list[str]) -> str | None:
    texts = [value] if isinstance(value, str) else value
    if not texts:
        return "is empty; list at least one text, or remove the key"
    if len(set(texts)) < len(texts):
        return "lists a text twice; every text must be unique"
    mistakes = (_text_source(text) for text in texts if text != DEFAULT)
    mistake = next((mistake for mistake in mistakes if mistake), None)
    return mistake.replace("is ", "has ", 1) if mistake and isinstance(value, list) else mistake


def _text_source(value: str) -> str | None:
    if is_path(value) or looks_like_file(value) or parse_dataset(value):
        return None
    return (
        f"is {value!r}, which is neither a file nor a hub dataset; write a file as ./NAME, a dataset as ORG/NAME:SPLIT"
    )


def _text_sources(value: list[str]) -> str | None:
    if not value:
        return "is empty; list at least one text, or remove [measure]"
    mistakes = (_text_source(text) for text in value)
    return next((mistake.replace("is ", "has ", 1) for mistake in mistakes if mistake), None)


def _messages(value: list[Any]) -> str | None:
    for message in value:
        if not (
            isinstance(message, list) and len(message) == 2 and message[0] in ROLES and isinstance(message[1], str)
        ):
            return f'has {message!r}; write each message as ["ROLE", "TEXT"], with the role system, user or assistant'
    return None


def _share(value: Any) -> str | None:
    text = str(value)
    number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    return None if number <= 1 else f'is {value!r}, which is more than 100%; write "95%" or 0.95'


def is_path(value: str) -> bool:
    """Whether a text has the form of a path: ./NAME, ../NAME, /NAME, ~/NAME."""
    return value.startswith(("./", "../", "/", "~")) or value in (".", "..")


def looks_like_file(value: str) -> bool:
    """Whether a text is more likely the name of a file than of a hub dataset."""
    return parse_dataset(value) is None and bool(Path(value).suffix)


TEXT = Value("a text", _is_text)
ANY_TEXT = Value("a text", lambda value: isinstance(value, str))
BOOL = Value("true or false", lambda value: isinstance(value, bool))
TEXTS = Value("a list of texts", _is_texts)
NUMBER = Value("a number", _is_number)
LIMIT = Value('a number of at least 0, or a text such as "5%"', _is_limit)

_GROUP_SIZE = Value(
    "a whole number of at least 1, or -1 for one group",
    lambda value: isinstance(value, int) and not isinstance(value, bool) and (value > 0 or value == -1),
)


def _folder(name: str) -> Table:
    """The options of a format of folders."""
    keys: dict[str, Kind] = {"skip": TEXTS}
    if FORMATS[name].group_sizes != ():
        keys = {"group_size": _GROUP_SIZE, **keys}
    if FORMATS[name].bits is None:
        four = Value("4: recipes write AWQ and GPTQ with 4 bits", lambda value: value == 4 and value is not True)
        keys = {"bits": four, **keys}
    return Table(keys)


_FLOORS = {
    "max_delta": LIMIT,
    "max_kl": Value("a number of at least 0", lambda value: _is_number(value) and value >= 0),
    "min_top1": Value('a fraction such as "95%" or 0.95', _is_limit, _share),
}
_TYPE_NAMES = (*FOLDERS, *FILE_TYPES)

MODEL: dict[str, Kind] = {
    "name": Value("a text", _is_text, _plain_name),
    "source": Value("a text", _is_text, _source),
    "revision": TEXT,
    "size": TEXT,
    "context_length": _whole(1),
    "chat_template": Value("a text", _is_text, _template),
    "bos_token": ANY_TEXT,
    "eos_token": ANY_TEXT,
    "adds_bos": BOOL,
    "license": TEXT,
    "languages": TEXTS,
    "base_model": TEXT,
}

SCHEMA = Table(
    {
        "version": Value(f"{VERSION}, the only version", lambda value: value == VERSION and value is not True),
        "extends": TEXT,
        "model": Table(MODEL),
        "formats": Table(
            {
                "gguf": Value("a list of texts", _is_texts, _types),
                **{name: Either(BOOL, _folder(name)) for name in FOLDERS},
                "imatrix": BOOL,
                "mmproj": Value("f16, bf16 or q8_0", lambda value: value in ("f16", "bf16", "q8_0")),
            }
        ),
        "calibration": Table(
            {
                "text": Value(
                    "a text or a list of texts", lambda value: _is_text(value) or _is_texts(value), _calibration_texts
                ),
                "samples": _whole(1),
                "seq_len": _whole(2),
                "chat": BOOL,
            }
        ),
        "measure": Table(
            {
                "texts": Value("a list of texts", _is_texts, _text_sources),
                "ctx": _whole(8),
                "chunks": _whole(1),
                "gpu_layers": Value(
                    'a text such as "0,8,all" or "none"',
                    lambda value: (
                        isinstance(value, str) and bool(re.fullmatch(r"none|(\d+|all)(,\s*(\d+|all))*", value))
                    ),
                ),
                "memory_ctx": _whole(1),
                "speed": BOOL,
            }
        ),
        "floors": Table(
            _FLOORS, more=Table(_FLOORS), more_names=lambda name: name.lower() in _TYPE_NAMES, names=_TYPE_NAMES
        ),
        "ollama": Table(
            {
                "name": Value("a text", _is_text, _ollama_name),
                "types": Value("a list of texts", _is_texts, _types),
                "system": ANY_TEXT,
                "license": TEXT,
                "messages": Value("a list", lambda value: isinstance(value, list), _messages),
                # `recipes.ollama` checks each parameter
                "parameters": Table({}, more=Value("a value", lambda value: True)),
            }
        ),
        "phone": Table(
            {
                "types": Value("a list of texts", _is_texts, _types),
                "memory": Value(
                    'a size such as "4G"', lambda value: isinstance(value, str) and bool(_SIZE.fullmatch(value.strip()))
                ),
            }
        ),
        "hub": Table(
            {
                "gguf": Value("a text", _is_text, _repo),
                **{name: Value("a text", _is_text, _repo) for name in FOLDERS},
                "private": BOOL,
            }
        ),
    }
)


BUILT_IN_TEMPLATES = (*BUILT_IN, "none")
