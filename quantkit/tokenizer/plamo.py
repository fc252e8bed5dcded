"""PLaMo 2 and 3's tokenizer: a list of pieces with scores, of which a text takes those with the highest sum.

Sources: llama.cpp conversion/base.py (_set_vocab_plamo), src/llama-vocab.cpp (llm_tokenizer_plamo2).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import TokenizerError, UnsupportedError
from quantkit.gguf import keyvalues
from quantkit.units import listed

from .tokens import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, Tokens, padding, say_padded, too_large

FILE_NAME = "tokenizer.jsonl"
_TYPES = {"UNKNOWN": UNKNOWN, "CONTROL": CONTROL, "BYTE": BYTE, "NORMAL": NORMAL}
_PADDING_SCORE = -1000.0
_ROLES = (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("sep", "seperator"), ("unk", "unknown"))
# Scores are compared as whole numbers of this unit.
_UNIT = 1e-4
_LOWEST, _UNKNOWN_SCORE = -20_000_000, -10_000_000


# Parts of special tokens, which are not special themselves.
_PARTS = frozenset({"<|plamo:begin_", "<|plamo:end_", ":plamo|>"})
NEWER = {"plamo3": "b11549"}
"""llama.cpp's name of a kind of tokenizer -> the first build that knows it, if quantkit supports older ones."""


@dataclass(frozen=True)
class _Kind:
    """`model`: llama.cpp's name. `cuts`: where a text is cut before pieces are chosen; `boundary` only cuts."""

    model: str
    cuts: re.Pattern[str] | None = None
    boundary: str = ""


_KINDS = {
    "Plamo2Tokenizer": _Kind("plamo2"),
    "Plamo3Tokenizer": _Kind(
        "plamo3",
        # a special token, a character four times, spaces
        re.compile(r"<\|plamo:[^|\s]{0,64}\|>|([^\n])\1{3,}| {2,}"),
        "\uee00",
    ),
}


@dataclass(frozen=True)
class Pieces:
    """Text, score and type of each token."""

    kind: _Kind
    texts: list[str]
    scores: list[float]
    types: list[int]


def read_pieces(path: Path, config: Mapping[str, Any]) -> Pieces:
    """The pieces of tokenizer.jsonl; `config` is tokenizer_config.json, which says which tokenizer it is.

    Raises:
        UnsupportedError: it is another tokenizer.
        TokenizerError: a line is not a piece, or a byte has no token.
    """
    kind = _KINDS.get(str(config.get("tokenizer_class")))
    if kind is None:
        raise UnsupportedError(
            f"tokenizer_config.json: tokenizer_class is {config.get('tokenizer_class')!r}; {FILE_NAME} is supported for"
            f" {listed(_KINDS)}"
        )
    texts: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    for number, entry in enumerate(_lines(path), 1):
        if not (isinstance(entry, list) and len(entry) > 1 and isinstance(entry[0], str)):
            raise TokenizerError(f"{path}: line {number} is not [piece, score, type]; download the file again")
        text = entry[0]
        texts.append(text)
        scores.append(float(entry[1]))
        stated = _TYPES.get(str(entry[2]) if len(entry) > 2 else "NORMAL", NORMAL)
        special = text.startswith("<|plamo:") and text.endswith("|>")
        if text in _PARTS:
            stated = NORMAL
        elif stated == NORMAL and special:
            stated = CONTROL
        types.append(stated)
    known = {text for text, number in zip(texts, types, strict=True) if number == BYTE}
    lacking = next((byte for byte in range(256) if _byte(byte) not in known), None)
    if lacking is not None:
        raise TokenizerError(f"{path} has no token for the byte {_byte(lacking)}; download the file again")
    return Pieces(kind, texts, scores, types)


def _lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise TokenizerError(
                        f"{path}: line {number} is not JSON ({error}); download the file again"
                    ) from error


def _byte(value: int) -> str:
    return f"<0x{value:02X}>"


def load(pieces: Pieces, config: Mapping[str, Any], stated: Mapping[str, Any], eot: str | None) -> Tokens:
    """The vocabulary with its special tokens; `config` is config.json, `stated` tokenizer_config.json.

    `eot`: the token that ends a turn, if the family names one.

    Raises TokenizerError: the embedding has fewer rows, or a special token is not a piece.
    """
    count = len(pieces.texts)
    rows = int(config.get("vocab_size") or count)
    if count > rows:
        raise too_large(count, rows)
    tokens = Tokens(
        model=pieces.kind.model,
        pre="default",
        texts=[text.encode() for text in pieces.texts] + padding(range(1, rows - count + 1)),
        types=pieces.types + [UNUSED] * (rows - count),
        scores=pieces.scores + [_PADDING_SCORE] * (rows - count),
    )
    say_padded(tokens, count)
    numbers = {text: number for number, text in enumerate(pieces.texts)}

    def number_of(text: str) -> int:
        if text not in numbers:
            raise TokenizerError(f"{FILE_NAME} has no piece {text!r}, which is a special token; download it again")
        return numbers[text]

    tokens.last = [
        keyvalues.uint32(f"tokenizer.ggml.{name}_token_id", number_of(str(stated[f"{role}_token"])))
        for role, name in _ROLES
        if stated.get(f"{role}_token") is not None
    ]
    if eot is not None:
        tokens.last.append(keyvalues.uint32("tokenizer.ggml.eot_token_id", number_of(eot)))
    tokens.last.append(keyvalues.boolean("tokenizer.ggml.add_space_prefix", False))
    tokens.last += [
        keyvalues.boolean(f"tokenizer.ggml.add_{role}_token", bool(stated[f"add_{role}_token"]))
        for role in ("bos", "eos")
        if stated.get(f"add_{role}_token") is not None
    ]
    return tokens


def encoder(pieces: Pieces) -> Callable[[Sequence[str]], list[list[int]]]:
    """The function from texts to the token ids of each; special tokens written in a text become their ids."""
    special = {
        text: number
        for number, (text, kind) in enumerate(zip(pieces.texts, pieces.types, strict=True))
        if kind in (CONTROL, UNKNOWN)
    }
    longest_first = sorted(special, key=len, reverse=True)
    cut = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if special else re.compile("(?!)")
    chooser = _Chooser(pieces)

    def ids_of(text: str) -> list[int]:
        ids: list[int] = []
        for position, part in enumerate(cut.split(text)):
            if position % 2:
                ids.append(special[part])
            else:
                for segment in _segments(part, pieces.kind):
                    ids += chooser.ids(segment)
        return ids

    return lambda texts: [ids_of(text) for text in texts]


def _segments(text: str, kind: _Kind) -> Iterator[str]:
    if kind.cuts is None:
        # a byte order mark is not part of the text
        yield text.removeprefix("\ufeff")
        return
    start = 0
    for match in kind.cuts.finditer(text):
        yield from text[start : match.start()].split(kind.boundary)
        yield match[0]
        start = match.end()
    yield from text[start:].split(kind.boundary)


class _Chooser:
    """Chooses the pieces of a text with the highest sum of scores; longer ones where sums are equal."""

    def __init__(self, pieces: Pieces) -> None:
        self.scored = {
            text: (number, round(score / _UNIT))
            for number, (text, score, kind) in enumerate(zip(pieces.texts, pieces.scores, pieces.types, strict=True))
            if kind != BYTE
        }
        self.bytes = {text: number for number, text in enumerate(pieces.texts) if pieces.types[number] == BYTE}
        self.longest = max(map(len, self.scored), default=1)

    def ids(self, text: str) -> list[int]:
        # from the end: the sum of scores from each position on, and the length of the piece there
        sums, lengths = [0] * (len(text) + 1), [1] * len(text)
        for start in range(len(text) - 1, -1, -1):
            best: int | None = None
            for length in range(min(self.longest, len(text) - start), 0, -1):
                found = self.scored.get(text[start : start + length])
                if found is None or found[1] <= _LOWEST:
                    continue
                total = sums[start + length] + found[1]
                if best is None or total > best:
                    best, lengths[start] = total, length
            unknown = sums[start + 1] + _UNKNOWN_SCORE
            if best is None or unknown > best:
                best, lengths[start] = unknown, 0
            sums[start] = best
        ids, at = [], 0
        while at < len(text):
            if lengths[at]:
                ids.append(self.scored[text[at : at + lengths[at]]][0])
            else:
                ids += [self.bytes[_byte(value)] for value in text[at].encode("utf-8", "surrogatepass")]
            at += max(lengths[at], 1)
        return ids
