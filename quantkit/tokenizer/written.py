"""The token texts of a written vocabulary against the checkpoint's own tokenizer, without llama.cpp.

The checkpoint's tokenizer gives the ids of a text. The texts that the file has for these ids must join to that text.
This compares every token that the probe uses. It does not compare how llama.cpp would split the text.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from tokenizers.normalizers import Normalizer

from quantkit.gguf.keyvalues import KeyValue

from . import rwkv_world
from .files import TokenizerFiles, read
from .huggingface import build_tokenizer, hf_token_ids
from .ranks import alphabet
from .tokens import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED

_BYTE = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


def unlike_texts(folder: Path, keys: Sequence[KeyValue], texts: Sequence[str]) -> list[tuple[str, str]]:
    """(text, text of the file's tokens) of each of `texts` that the file's tokens do not spell.

    `keys` are the tokenizer.* keys of the file. Texts with an unknown token are not compared. Spaces and the forms that
    Unicode normalization unites do not count. Raises what `hf_token_ids` raises.
    """
    values = {key.key: key.value for key in keys}
    rows: list[bytes] = list(values["tokenizer.ggml.tokens"])
    types: list[int] = list(values["tokenizer.ggml.token_type"])
    kind = str(values.get("tokenizer.ggml.model"))
    unknown = values.get("tokenizer.ggml.unknown_token_id")  # a control token in WordPiece vocabularies
    normalized = _Normalizer(read(folder))
    result = []
    for text, ids in zip(texts, hf_token_ids(folder, texts), strict=True):
        if any(number >= len(rows) or number == unknown or types[number] == UNKNOWN for number in ids):
            continue
        spelled = b"".join(_spelled(rows[number], types[number], kind) for number in ids).decode(errors="replace")
        if _plain(spelled) != _plain(text) and _plain(spelled) != _plain(normalized(text)):
            result.append((text, spelled))
    return result


def special_texts(folder: Path, keys: Sequence[KeyValue]) -> list[str]:
    """The texts of the checkpoint's added tokens that have a row in the file: each must be one token of that text."""
    rows = next(key.value for key in keys if key.key == "tokenizer.ggml.tokens")
    entries = (read(folder).tokenizer or {}).get("added_tokens") or []
    return [entry["content"] for entry in entries if entry["id"] < len(rows)]


def _spelled(row: bytes, kind: int, model: str) -> bytes:
    """The bytes that a token stands for."""
    if model == "rwkv":
        return rwkv_world.spelled(row)
    if model == "gpt2":
        table = _bytes_by_character()
        characters = row.decode(errors="replace") if kind == NORMAL else ""
        return bytes(table[c] for c in characters) if characters and all(c in table for c in characters) else row
    if kind == BYTE and (match := _BYTE.fullmatch(row)):
        return bytes([int(match[1], 16)])
    return row if kind in (CONTROL, USER_DEFINED) else row.replace(SPACE.encode(), b" ")


@functools.cache
def _bytes_by_character() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for."""
    return {character: byte for byte, character in alphabet().items()}


class _Normalizer:
    """A text as the normalizer of tokenizer.json changes it. The tokenizer is built for the first text: 0.1 s."""

    def __init__(self, files: TokenizerFiles) -> None:
        self._files = files

    @functools.cached_property
    def _normalizer(self) -> Normalizer | None:
        return None if self._files.tokenizer is None else build_tokenizer(self._files).normalizer

    def __call__(self, text: str) -> str:
        return text if self._normalizer is None else str(self._normalizer.normalize_str(text))


def _plain(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).replace(SPACE, " ").split())
