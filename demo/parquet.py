"""Just enough of Parquet to read one column of strings, so that the demo needs no pyarrow (40 MB) for 700 kB of text.

It reads what Arrow writes by default: one flat column, dictionary-encoded or plain version 1 pages, snappy. Anything
else fails in the checksum that the caller holds the text against. Sources: parquet.thrift, Thrift's compact protocol,
Parquet's Encodings.md, and snappy's format_description.txt.
"""

import struct
from typing import Any

_DICTIONARY_PAGE = 2
_PLAIN = 0


def read_strings(data: bytes) -> list[str]:
    """Every value of the file's only column."""
    (footer_size,) = struct.unpack("<I", data[-8:-4])
    footer, _ = _struct(data, len(data) - 8 - footer_size)
    values: list[str] = []
    for group in footer[4]:
        column = group[1][0][3]
        position = min(column[9], column.get(11, column[9]))
        dictionary: list[str] = []
        wanted = len(values) + column[5]
        while len(values) < wanted:
            header, position = _struct(data, position)
            page = _snappy(data[position : position + header[3]])
            position += header[3]
            if header[1] == _DICTIONARY_PAGE:
                dictionary = _plain(page)
                continue
            count, encoding = header[5][1], header[5][2]
            levels_size = struct.unpack_from("<I", page)[0]  # no value is null, so the levels say nothing
            body = page[4 + levels_size :]
            values += _plain(body) if encoding == _PLAIN else [dictionary[i] for i in _indices(body, count)]
    return values


def _plain(page: bytes) -> list[str]:
    values, at = [], 0
    while at < len(page):
        (size,) = struct.unpack_from("<I", page, at)
        values.append(page[at + 4 : at + 4 + size].decode("utf-8"))
        at += 4 + size
    return values


def _indices(body: bytes, count: int) -> list[int]:
    """The hybrid of run-length and bit-packed groups of 8; the first byte is the bit width."""
    width, at, out = body[0], 1, list[int]()
    while len(out) < count:
        head, at = _varint(body, at)
        size = (head >> 1) * width if head & 1 else (width + 7) // 8
        bits = int.from_bytes(body[at : at + size], "little")
        at += size
        if head & 1:
            out += [bits >> i * width & (1 << width) - 1 for i in range((head >> 1) * 8)]
        else:
            out += [bits] * (head >> 1)
    return out[:count]


def _snappy(data: bytes) -> bytes:
    _, at = _varint(data, 0)
    out = bytearray()
    while at < len(data):
        tag = data[at]
        kind, high = tag & 3, tag >> 2
        at += 1
        if kind == 0:
            extra = max(high - 59, 0)
            size = 1 + (int.from_bytes(data[at : at + extra], "little") if extra else high)
            out += data[at + extra : at + extra + size]
            at += extra + size
            continue
        width = (1, 2, 4)[kind - 1]
        back = int.from_bytes(data[at : at + width], "little")
        at += width
        size = high + 1
        if kind == 1:
            size, back = (high & 7) + 4, back | tag >> 5 << 8
        for _ in range(size):
            out.append(out[-back])
    return bytes(out)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """A Thrift struct in the compact protocol, as field id -> value, and where it ends."""
    fields: dict[int, Any] = {}
    field = 0
    while kind := data[at]:
        delta, kind = kind >> 4, kind & 15
        at += 1
        if delta:
            field += delta
        else:
            zigzag, at = _varint(data, at)
            field = zigzag >> 1 ^ -(zigzag & 1)
        fields[field], at = _value(data, at, kind)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, at
    if kind == 3:
        return data[at], at + 1
    if kind in (4, 5, 6):
        zigzag, at = _varint(data, at)
        return zigzag >> 1 ^ -(zigzag & 1), at
    if kind == 7:
        return data[at : at + 8], at + 8
    if kind == 8:
        size, at = _varint(data, at)
        return data[at : at + size], at + size
    if kind in (9, 10):
        size, item, at = data[at] >> 4, data[at] & 15, at + 1
        if size == 15:
            size, at = _varint(data, at)
        items = []
        for _ in range(size):
            value, at = _value(data, at, item)
            items.append(value)
        return items, at
    if kind == 12:
        return _struct(data, at)
    raise ValueError(f"Thrift type {kind} is not handled")
