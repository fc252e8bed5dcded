"""Tokenizers of the tiny models, made as large as a vocabulary of today: made-up tokens after the trained ones."""

import itertools
import json
import struct
from collections.abc import Iterator
from pathlib import Path

from tests.families.models import write_tokenizer


def write_large_tokenizer(folder: Path, style: str, size: int) -> None:
    """Write the files of `tests.families.models.write_tokenizer`, with `size` tokens.

    Each new token is one that the vocabulary has and one letter, so that it has a merge.
    """
    write_tokenizer(folder, style)
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text("utf-8"))
    model = whole["model"]
    known = (
        model["vocab"]
        if isinstance(model["vocab"], dict)
        else {text: id_ for id_, (text, _) in enumerate(model["vocab"])}
    )
    first = 1 + max([*known.values(), *(token["id"] for token in whole["added_tokens"])])
    new = list(itertools.islice(_words(set(known)), size - first))
    if isinstance(model["vocab"], dict):
        prefix = "##" if model["type"] == "WordPiece" else ""
        model["vocab"] |= {prefix + text: first + number for number, text in enumerate(new)}
    else:
        model["vocab"] += [[text, -20.0] for text in new]
    if model["type"] == "BPE":
        pairs = model["merges"] and isinstance(model["merges"][0], list)
        model["merges"] += [[text[:-1], text[-1]] if pairs else f"{text[:-1]} {text[-1]}" for text in new]
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False), encoding="utf-8")
    if (folder / "tokenizer.model").exists():
        with (folder / "tokenizer.model").open("ab") as file:
            file.write(b"".join(_piece(text, -float(first + number)) for number, text in enumerate(new)))
    if (folder / "vocab.txt").exists():
        (folder / "vocab.txt").write_text("\n".join(model["vocab"]) + "\n", encoding="utf-8")


def _words(known: set[str]) -> Iterator[str]:
    """Words that are not in `known`, without end: words of one letter less, each with every letter."""
    letters = sorted(text for text in known if len(text) == 1 and text.isascii() and text.isalpha())
    words: list[str] = letters
    while True:
        longer = [word + letter for word in words for letter in letters]
        yield from (word for word in longer if word not in known)
        words = longer


def _piece(text: str, score: float) -> bytes:
    """A SentencePiece piece as a field of its ModelProto, which may be appended."""
    data = text.encode()
    message = b"\x0a" + bytes([len(data)]) + data + b"\x15" + struct.pack("<f", score)
    return b"\x0a" + bytes([len(message)]) + message
