"""A strict reader of GGUF headers: every count and offset is checked against the file size before use.

Format: ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

import os
import re
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from quantkit.errors import CheckpointError
from quantkit.gguf.keyvalues import SCALARS, KeyValue
from quantkit.gguf.layout import ALIGNMENT, MAGIC, Slot, tensor_bytes
from quantkit.gguf.types import block_size

_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
_MAX_DIMS = 4
_PIECE = 1 << 20
"""Bytes of a vocabulary that are read at once."""


@dataclass(frozen=True)
class GgufHeader:
    """The header of one file: its keys in order, its tensors with absolute offsets, and its size in bytes."""

    path: Path
    keys: tuple[KeyValue, ...]
    tensors: tuple[Slot, ...]
    size: int
    header_bytes: int

    def value(self, key: str, default: Any = None) -> Any:
        """The value of a key, or `default`."""
        return next((item.value for item in self.keys if item.key == key), default)

    @property
    def is_encoder(self) -> bool:
        """Whether the model gives embeddings or scores of a text, and no next token.

        Its tokens attend to later ones, or the file states how to pool their vectors; T5's encoder states neither.
        """
        arch = self.value("general.architecture")
        pooled = self.value(f"{arch}.attention.causal") is False or bool(self.value(f"{arch}.pooling_type"))
        buckets = self.value(f"{arch}.attention.relative_buckets_count") is not None
        return pooled or (buckets and not self.answers_a_text)

    @property
    def answers_a_text(self) -> bool:
        """Whether the model has an encoder, which reads a text, and a decoder, which answers it (T5)."""
        return self.value(f"{self.value('general.architecture')}.decoder_start_token_id") is not None


def shard_paths(path: Path) -> list[Path]:
    """All shards of the model if `path` is a shard; otherwise `path` alone.

    Raises:
        CheckpointError: a shard is missing.
    """
    match = _SHARD.match(path.name)
    if not match:
        return [path]
    count = int(match["count"])
    paths = [path.with_name(f"{match['stem']}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]
    for shard in paths:
        if not shard.is_file():
            raise CheckpointError(
                f"shard {shard.name} of {count} not found next to {path.name}; put all shards in one folder"
            )
    return paths


def read_header(path: Path) -> GgufHeader:
    """Parse and check a GGUF header.

    Raises:
        CheckpointError: not a GGUF, an unsupported version, a truncated or contradictory header.
    """
    try:
        with path.open("rb") as file:
            return _Parser(path, file).header()
    except OSError as error:
        raise CheckpointError(f"cannot read {path} ({error.strerror or error}); check the path") from error


class _Parser:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size

    def fail(self, problem: str, advice: str = "download or convert it again") -> CheckpointError:
        at = self.file.tell()
        return CheckpointError(f"{self.path.name} is not a sound GGUF file: {problem} (byte {at}); {advice}")

    def take(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise self.fail("it ends early")
        return self.file.read(count)

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> bytes:
        return self.take(self.number("Q"))

    def texts(self, count: int) -> list[bytes]:
        """Read `count` texts. A vocabulary has over 100,000, so they are cut out of pieces of the file."""
        start, data, at = self.file.tell(), b"", 0
        unpack, texts = struct.Struct("<Q").unpack_from, []
        for _ in range(count):
            end = at + 8
            if end <= len(data):
                end += unpack(data, at)[0]
            if end > len(data):
                start, at = start + at, 0
                self.file.seek(start)
                end = 8 + self.number("Q")
                if end > self.size - start:
                    raise self.fail("it ends early")
                self.file.seek(start)
                data = self.file.read(max(end, _PIECE))
            texts.append(data[at + 8 : end])
            at = end
        self.file.seek(start + at)
        return texts

    def header(self) -> GgufHeader:
        if self.take(4) != MAGIC:
            raise self.fail("the magic is missing", "pass a GGUF file")
        version = self.number("I")
        if version not in (2, 3):
            raise self.fail(f"version {version} is not 2 or 3 (little-endian)")
        n_tensors, n_keys = self.number("Q"), self.number("Q")
        # A key has at least 13 bytes and a tensor 24, so larger counts are false.
        if n_keys > self.size // 13 or n_tensors > self.size // 24:
            raise self.fail(f"it claims {n_keys} keys and {n_tensors} tensors")
        keys = [self.key() for _ in range(n_keys)]
        names = [key.key for key in keys]
        if len(set(names)) != len(names):
            raise self.fail("a key is listed twice")
        infos = [self.info() for _ in range(n_tensors)]
        alignment = next((key.value for key in keys if key.key == "general.alignment"), ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
            raise self.fail(f"alignment {alignment!r} is not a power of two")
        start = -(-self.file.tell() // alignment) * alignment
        slots = tuple(Slot(name, shape, kind, start + offset, size) for name, shape, kind, offset, size in infos)
        if len({slot.name for slot in slots}) != len(slots):
            raise self.fail("a tensor is listed twice")
        end = start
        for slot in sorted(slots, key=lambda slot: slot.offset):
            if slot.offset < end or slot.offset + slot.nbytes > self.size:
                raise self.fail(f"tensor {slot.name} overlaps another tensor or extends past the end of the file")
            end = slot.offset + slot.nbytes
        return GgufHeader(self.path, tuple(keys), slots, self.size, start)

    def kind(self) -> GGUFValueType:
        value = self.number("I")
        try:
            return GGUFValueType(value)
        except ValueError:
            raise self.fail(f"value type {value} is unknown") from None

    def key(self) -> KeyValue:
        name = self.decoded("a key's name")
        kind = self.kind()
        if kind != GGUFValueType.ARRAY:
            return KeyValue(name, kind, self.scalar(kind))
        item, count = self.kind(), self.number("Q")
        if item == GGUFValueType.ARRAY:
            raise self.fail(f"{name} is an array of arrays")
        if item == GGUFValueType.STRING:
            if count > self.size // 8:
                raise self.fail(f"{name} claims {count} strings")
            return KeyValue(name, kind, self.texts(count), item)
        width = struct.calcsize(SCALARS[item])
        values = np.frombuffer(self.take(count * width), dtype=np.dtype(SCALARS[item][1:]).newbyteorder("<"))
        return KeyValue(name, kind, values, item)

    def scalar(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self.decoded("a value")
        return self.number(SCALARS[kind][1:])

    def decoded(self, field: str) -> str:
        try:
            return self.text().decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{field} is not UTF-8") from None

    def info(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int, int]:
        name = self.decoded("a tensor's name")
        n_dims = self.number("I")
        if not 1 <= n_dims <= _MAX_DIMS:
            raise self.fail(f"tensor {name} has {n_dims} dimensions")
        shape = tuple(reversed(struct.unpack(f"<{n_dims}Q", self.take(8 * n_dims))))
        code, offset = self.number("I"), self.number("Q")
        try:
            kind = GGMLQuantizationType(code)
        except ValueError:
            raise self.fail(f"tensor {name} has the unknown type {code}") from None
        if prod(shape) > self.size * 256 or 0 in shape:
            raise self.fail(f"tensor {name} claims the shape {list(shape)}")
        if shape[-1] % block_size(kind)[0]:
            raise self.fail(f"tensor {name} has rows of {shape[-1]} values, which are not whole blocks of {kind.name}")
        return name, shape, kind, offset, tensor_bytes(kind, shape)
