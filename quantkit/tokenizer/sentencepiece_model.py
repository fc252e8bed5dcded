"""A reader for SentencePiece's tokenizer.model: the few fields of its protobuf message that a vocabulary needs.

The sentencepiece package does not distinguish user-defined pieces from normal ones, and does not show the normalizer.
Its message class needs the protobuf package. The wire format is simple enough to read directly.
Source: sentencepiece_model.proto of google/sentencepiece (field numbers), the protobuf encoding guide (wire format).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Algorithm(IntEnum):
    """TrainerSpec.ModelType."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclass(frozen=True)
class SentencePieceModel:
    """`types` holds SentencePiece.Type, whose numbers (NORMAL 1 ... BYTE 6) are also GGUF's token types.

    `bos_id` and `eos_id` are -1 where the model has none.
    """

    pieces: list[bytes]
    scores: list[float]
    types: list[int]
    algorithm: int
    byte_fallback: bool
    whitespace_as_suffix: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    precompiled_charsmap: bytes
    bos_id: int
    eos_id: int


@lru_cache(maxsize=1)
def parse(data: bytes) -> SentencePieceModel:
    """Parse a serialized ModelProto, the last one once; raises ValueError when the bytes are not one."""
    pieces: list[bytes] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(_message(value)))
            pieces.append(_message(piece.get(1, b"")))
            scores.append(struct.unpack("<f", _bounded(piece.get(2, 0), 0, 2**32 - 1).to_bytes(4, "little"))[0])
            types.append(_bounded(piece.get(3, 1), 1, 6))
        elif number == 2:
            trainer = dict(_fields(_message(value)))
        elif number == 3:
            normalizer = dict(_fields(_message(value)))
    if not pieces:
        raise ValueError("it holds no pieces")
    return SentencePieceModel(
        pieces=pieces,
        scores=scores,
        types=types,
        algorithm=_integer(trainer.get(3, Algorithm.UNIGRAM)),
        byte_fallback=bool(trainer.get(35, 0)),
        whitespace_as_suffix=bool(trainer.get(24, 0)),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        precompiled_charsmap=_message(normalizer.get(2, b"")),
        bos_id=_signed(trainer.get(41, 1)),
        eos_id=_signed(trainer.get(42, 2)),
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"a field of {size} bytes ends past the end")
        chunk = data[at : at + size]
        at += size
        yield number, chunk if wire == _BYTES else int.from_bytes(chunk, "little")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"an unfinished number at byte {at}")


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value


def _integer(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("a message where a number belongs")
    return value


def _bounded(value: int | bytes, least: int, most: int) -> int:
    number = _integer(value)
    if not least <= number <= most:
        raise ValueError(f"the number {number} where {least} to {most} is allowed")
    return number


def _signed(value: int | bytes) -> int:
    number = _integer(value)
    return number - (1 << 64) if number >= 1 << 63 else number
