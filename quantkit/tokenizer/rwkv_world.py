"""RWKV's World tokenizer: a list of byte strings, of which a text takes the longest that fits, from left to right.

Sources: the package rwkv on PyPI (rwkv_tokenizer.py), llama.cpp conversion/base.py (_set_vocab_rwkv_world) and
src/llama-vocab.cpp (llm_tokenizer_rwkv).
"""

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.errors import TokenizerError

from .tokens import CONTROL, NORMAL, UNUSED, Tokens, padding, say_padded, too_large

FILE_NAME = "rwkv_vocab_v20230424.txt"
_ESCAPE = re.compile(rb"\\(x[0-9a-f]{2}|.)", re.DOTALL)
_CODES = {b"n": b"\n", b"t": b"\t", b"r": b"\r"}
_END = 0
"""The id of the token that begins and ends a text; the file has no line for it."""
_TWO_NEWLINES = 261
"""The id of an empty line, which ends a turn of the World chat format."""


def read_words(path: Path) -> list[bytes]:
    """The words of the file, of which the first has the id 1.

    Raises:
        TokenizerError: a line is not an id, a Python literal and a length in bytes; ids leave a gap; a byte alone is
            not a word.
    """
    words: list[bytes] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    words.append(_word(line, len(words) + 1, number, path))
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} cannot be read as UTF-8 text ({error}); download it again") from error
    known = set(words)
    lacking = next((byte for byte in range(256) if bytes([byte]) not in known), None)
    if lacking is not None:
        raise TokenizerError(f"{path} has no token for the byte 0x{lacking:02X}; download the file again")
    return words


def _word(line: str, wanted: int, number: int, path: Path) -> bytes:
    stated, _, rest = line.partition(" ")
    literal, _, length = rest.rpartition(" ")
    try:
        value = ast.literal_eval(literal)
        word = value.encode("utf-8") if isinstance(value, str) else value
        fits = isinstance(word, bytes) and int(stated) == wanted and int(length) == len(word) > 0
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        fits, word = False, b""
    if not fits:
        raise TokenizerError(
            f"{path}: line {number} is not the id {wanted}, a word in quotes and its length; download the file again"
        )
    return bytes(word)


def load(words: Sequence[bytes], config: Mapping[str, Any]) -> Tokens:
    """The vocabulary with its special tokens; `config` is config.json.

    Raises TokenizerError: the embedding has fewer rows.
    """
    count = 1 + len(words)
    rows = int(config.get("vocab_size") or count)
    if count > rows:
        raise too_large(count, rows)
    tokens = Tokens(
        model="rwkv",
        pre=None,
        # llama.cpp undoes the escapes of Python's repr
        texts=[b"<s>", *(repr(word)[2:-1].encode() for word in words), *padding(range(count, rows))],
        types=[CONTROL, *[NORMAL] * len(words), *[UNUSED] * (rows - count)],
    )
    say_padded(tokens, count)
    return tokens


def spelled(row: bytes) -> bytes:
    """The word that a row of the vocabulary stands for."""
    return _ESCAPE.sub(lambda match: _CODES.get(match[1]) or _of_escape(match[1]), row)


def _of_escape(code: bytes) -> bytes:
    return bytes([int(code[1:], 16)]) if len(code) == 3 else code


def set_ends(ids: dict[str, int]) -> None:
    """Set the tokens that end a turn and a text, whatever the files say, as llama.cpp's converter does."""
    ids.setdefault("eot", _TWO_NEWLINES)
    ids["bos"] = ids["eos"] = _END


def encoder(words: Sequence[bytes]) -> Callable[[Sequence[str]], list[list[int]]]:
    """The function from texts to the token ids of each: at each byte the longest word that the text goes on with."""
    numbers = {word: number for number, word in enumerate(words, 1)}
    # first two bytes -> the lengths of the words that begin so, longest first
    lengths: dict[bytes, set[int]] = {}
    for word in words:
        lengths.setdefault(word[:2], set()).add(len(word))
    longest_first = {start: sorted(of_start, reverse=True) for start, of_start in lengths.items()}

    def ids_of(text: str) -> list[int]:
        data, at, ids = text.encode("utf-8", "surrogatepass"), 0, []
        while at < len(data):
            for length in longest_first.get(data[at : at + 2], ()):
                number = numbers.get(data[at : at + length])
                if number is not None:
                    break
            else:
                length, number = 1, numbers[data[at : at + 1]]
            ids.append(number)
            at += length
        return ids

    return lambda texts: [ids_of(text) for text in texts]
