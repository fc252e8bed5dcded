"""GGUF key-values as plain data, and their bytes.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3, little-endian).
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from gguf import GGUFValueType

from quantkit.errors import CheckpointError

SCALARS: dict[GGUFValueType, str] = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
    GGUFValueType.BOOL: "<?",
}


_SHOWN = 80
"""Characters of a value that a message shows."""


@dataclass(frozen=True)
class KeyValue:
    """One key-value of a GGUF header. `item`: the element type if `kind` is ARRAY.

    A string value may be `str` or `bytes`; it is stored as UTF-8.
    """

    key: str
    kind: GGUFValueType
    value: Any
    item: GGUFValueType | None = None

    def pack(self) -> bytes:
        """The bytes of the key-value in a GGUF header.

        Raises:
            CheckpointError: a value is not of its type, or a number is outside its range.
        """
        if self.kind == GGUFValueType.ARRAY and self.item in (None, GGUFValueType.ARRAY):
            raise ValueError("an array key needs an element type that is not itself an array")
        try:
            return self._packed
        except (OverflowError, TypeError, ValueError, struct.error) as error:
            kind = (self.item or self.kind).name.lower()
            text = repr(self.value) if len(repr(self.value)) <= _SHOWN else f"{repr(self.value)[:_SHOWN]}..."
            raise CheckpointError(
                f"the value {text} does not fit into the GGUF key {self.key} ({kind}); correct the checkpoint's setting"
                " that it comes from"
            ) from error

    @cached_property
    def _packed(self) -> bytes:
        # Cached, because every output of a pass has the vocabulary in its header.
        return _string(self.key) + struct.pack("<I", self.kind) + _value(self.kind, self.value, self.item)


def string(key: str, value: str | bytes) -> KeyValue:
    """A key with a text value."""
    return KeyValue(key, GGUFValueType.STRING, value)


def uint32(key: str, value: int) -> KeyValue:
    """A key with an unsigned integer of 32 bits."""
    return KeyValue(key, GGUFValueType.UINT32, int(value))


def float32(key: str, value: float) -> KeyValue:
    """A key with a float of 32 bits."""
    return KeyValue(key, GGUFValueType.FLOAT32, float(value))


def boolean(key: str, value: bool) -> KeyValue:
    """A key with a truth value."""
    return KeyValue(key, GGUFValueType.BOOL, bool(value))


def array(key: str, item: GGUFValueType, values: Sequence[Any]) -> KeyValue:
    """A key with an array of values of type `item`."""
    return KeyValue(key, GGUFValueType.ARRAY, values, item)


def _string(text: str | bytes) -> bytes:
    data = text.encode("utf-8") if isinstance(text, str) else bytes(text)
    return struct.pack("<Q", len(data)) + data


def _strings(texts: Sequence[str | bytes]) -> bytes:
    """Each text with its length before it; a vocabulary has 100,000 of them."""
    data = [text if isinstance(text, bytes) else text.encode("utf-8") for text in texts]
    parts: list[bytes] = [b""] * (2 * len(data))
    lengths = [len(text) for text in data]
    packed = {length: struct.pack("<Q", length) for length in set(lengths)}
    parts[::2] = [packed[length] for length in lengths]
    parts[1::2] = data
    return b"".join(parts)


def _value(kind: GGUFValueType, value: Any, item: GGUFValueType | None) -> bytes:
    if kind == GGUFValueType.STRING:
        return _string(value)
    if kind != GGUFValueType.ARRAY:
        return struct.pack(SCALARS[kind], value)
    assert item is not None
    head = struct.pack("<IQ", item, len(value))
    if item == GGUFValueType.STRING:
        return head + _strings(value)
    return head + np.asarray(value, dtype=np.dtype(SCALARS[item][1:]).newbyteorder("<")).tobytes()
