"""Random damage to a file's bytes, the same for the same generator: bits, lengths, pieces, numbers, words."""

import random

_WORDS = (
    b"NaN", b"Infinity", b"1e400", b"-1", b"null", b"[]", b"{}", b'""', b'"\\ud800"', b"true", b"\x00", b"\xff\xfe",
    b"9" * 5000, b"[" * 2000, b"18446744073709551615", b"9223372036854775807", b"\x1b[2J",
)  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    """`data` after one to three random edits; seldom the same as before."""
    for _ in range(rng.randint(1, 3)):
        data = rng.choice(_EDITS)(data, rng)
    return data


def _flip(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _delete(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.randint(1, 40) :]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    end = at + rng.randint(1, 200)
    return data[:end] + data[at:end] + data[end:]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(_WORDS) + data[at:]


def _replace_number(data: bytes, rng: random.Random) -> bytes:
    """Eight bytes, as a length or an offset of a binary file is, become a small or a huge number."""
    at = rng.randrange(len(data) + 1)
    number = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1))
    return data[:at] + number.to_bytes(8, "little") + data[at + 8 :]


def _replace_value(data: bytes, rng: random.Random) -> bytes:
    """What stands between two separators of a text becomes another word."""
    at = rng.randrange(len(data) + 1)
    start = max(data.rfind(mark, 0, at) for mark in (b":", b",", b"[", b"=", b" ", b"\n")) + 1
    ends = [end for mark in (b",", b"}", b"]", b"\n") if (end := data.find(mark, start)) >= 0]
    return data[:start] + rng.choice(_WORDS) + data[min(ends, default=len(data)) :]


_EDITS = (_flip, _cut, _delete, _repeat, _insert, _replace_number, _replace_value, _replace_value)
