"""Qwen-1's tokenizer: a table of byte strings and their ranks (qwen.tiktoken) that comes without merges.

The table is read two ways. `token_ids` follows the tiktoken package exactly, for the ground truth: join the adjacent
pair whose joined bytes rank lowest, until no pair is in the table. `tokenizer_json` writes the same tokenizer as
byte-level BPE with merges, which a GGUF file holds. To find the merge of a token, join its bytes by lower ranks; the
last two parts are the merge (the idea is conversion/qwen.py's).

Source: tokenization_qwen.py of Qwen/Qwen-7B (file name, split, special tokens, normalization). Remote code is never
run.
"""

import base64
import binascii
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Regex, pre_tokenizers

from quantkit.errors import TokenizerError

FILE_NAME = "qwen.tiktoken"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END_OF_TEXT = "<|endoftext|>"
SPECIAL = [END_OF_TEXT, "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205))]

Ranks = Mapping[bytes, int]


def read(path: Path) -> Ranks:
    """Token bytes -> rank, which is also its id: 0, 1, 2... Raises TokenizerError when the file is not such a table."""
    try:
        return _parse(path.read_bytes())
    except (OSError, ValueError, binascii.Error) as error:
        raise TokenizerError(
            f"{path} is not a table of base64 tokens and ranks ({error}); download it again"
        ) from error


@lru_cache(maxsize=2)
def _parse(data: bytes) -> Ranks:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        token, _, rank = line.partition(b" ")
        if not rank.strip().isdigit():
            raise ValueError(f"line {number} has no rank")
        ranks[base64.b64decode(token, validate=True)] = int(rank)
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError("the ranks are not 0, 1, 2... once each")
    missing = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    if missing is not None:
        raise ValueError(f"byte {missing} has no token")
    return ranks


def special_ids(ranks: Ranks) -> dict[str, int]:
    """The special tokens, which follow the ranks."""
    return {text: len(ranks) + position for position, text in enumerate(SPECIAL)}


def token_ids(path: Path, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text by Qwen's tokenizer: NFC, special tokens cut out, the rest split and joined by rank."""
    ranks = read(path)
    special = special_ids(ranks)
    cut = re.compile("(" + "|".join(re.escape(text) for text in SPECIAL) + ")")
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    result = []
    for text in texts:
        ids: list[int] = []
        for position, part in enumerate(cut.split(unicodedata.normalize("NFC", text))):
            if position % 2:
                ids.append(special[part])
            elif part:
                words = [word.encode() for word, _ in split.pre_tokenize_str(part)]
                ids += [ranks[piece] for word in words for piece in ([word] if word in ranks else join(ranks, word))]
        result.append(ids)
    return result


def join(ranks: Ranks, word: bytes, below: int | None = None) -> list[bytes]:
    """The parts of `word` after joining, lowest rank first, while a joined pair has a rank (less than `below`)."""
    parts = [word[position : position + 1] for position in range(len(word))]
    unranked = len(ranks) if below is None else below
    while len(parts) > 1:
        merged = [ranks.get(left + right, unranked) for left, right in pairwise(parts)]
        lowest = min(merged)
        if lowest >= unranked:
            break
        at = merged.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def tokenizer_json(path: Path) -> str:
    """The same tokenizer in the form of a tokenizer.json."""
    read(path)
    return _tokenizer_json(path.read_bytes())


@lru_cache(maxsize=1)
def _tokenizer_json(data: bytes) -> str:
    ranks = _parse(data)
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = join(ranks, token, rank) if len(token) > 1 else [token]
        if len(parts) == 2:
            merges.append([_spelled(part) for part in parts])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    whole: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": text, **flags} for text, number in special_ids(ranks).items()],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "ignore_merges": False,
            "vocab": {_spelled(token): rank for token, rank in ranks.items()},
            "merges": merges,
        },
    }
    return json.dumps(whole, ensure_ascii=False)


def _spelled(token: bytes) -> str:
    return token.decode("latin-1").translate(alphabet())


@cache
def alphabet() -> dict[int, str]:
    """GPT-2's printable spelling of bytes: Latin-1's visible characters as they are, the others from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in visible)
    return {byte: chr(byte) for byte in visible} | {byte: chr(0x100 + number) for number, byte in enumerate(others)}
