"""The layout of a GGUF file or its shards: all offsets and sizes, computed before any tensor is read.

Format: ggml's docs/gguf.md, version 3. Shard names and keys: llama.cpp's tools/gguf-split.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from gguf import GGMLQuantizationType, GGUFValueType

from quantkit.errors import UsageError
from quantkit.gguf.keyvalues import KeyValue
from quantkit.gguf.types import row_bytes

ALIGNMENT = 32
MAGIC = b"GGUF"
VERSION = 3


@dataclass(frozen=True)
class Slot:
    """One tensor in a file. `shape`: in numpy order. `offset`: bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    nbytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return row_bytes(self.type, self.shape[-1])


@dataclass(frozen=True)
class FileLayout:
    """One GGUF file: its name, its padded header, its tensors, and its size in bytes."""

    name: str
    header: bytes
    slots: tuple[Slot, ...]
    size: int


def tensor_bytes(type_: GGMLQuantizationType, shape: Sequence[int]) -> int:
    """Bytes of a tensor. Every row is quantized separately."""
    return prod(shape[:-1]) * row_bytes(type_, shape[-1])


def padded(size: int) -> int:
    """`size` rounded up to GGUF's alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def lay_out(
    stem: str,
    keys: Sequence[KeyValue],
    tensors: Sequence[tuple[str, tuple[int, ...], GGMLQuantizationType]],
    split_max_size: int | None = None,
    *,
    keep_dims: bool = False,
) -> list[FileLayout]:
    """Lay out `tensors` (name, shape, type) in order: one file, or shards of `split_max_size` tensor bytes at most.

    `keep_dims`: outer dimensions of one are stored, as llama.cpp's converter does and its own writer does not.

    Raises:
        UsageError: a single tensor is larger than `split_max_size`.
    """
    groups: list[list[tuple[str, tuple[int, ...], GGMLQuantizationType]]] = [[]]
    filled = 0
    for tensor in tensors:
        size = padded(tensor_bytes(tensor[2], tensor[1]))
        if split_max_size is not None and size > split_max_size:
            raise UsageError(
                f"--split-max-size {split_max_size} bytes is smaller than tensor {tensor[0]} ({size} bytes);"
                " a tensor cannot be split, so pass at least that"
            )
        if split_max_size is not None and groups[-1] and filled + size > split_max_size:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += size
    if len(groups) == 1:
        return [_file(f"{stem}.gguf", keys, groups[0], keep_dims=keep_dims)]
    count = len(groups)
    files = []
    for number, group in enumerate(groups):
        split = [
            KeyValue("split.no", GGUFValueType.UINT16, number),
            KeyValue("split.count", GGUFValueType.UINT16, count),
            KeyValue("split.tensors.count", GGUFValueType.INT32, len(tensors)),
        ]
        # gguf-split sets the count last, so it comes after the other two.
        split.append(split.pop(1))
        name = f"{stem}-{number + 1:05d}-of-{count:05d}.gguf"
        files.append(_file(name, [*keys, *split] if number == 0 else split, group))
    return files


def _file(
    name: str,
    keys: Sequence[KeyValue],
    tensors: Sequence[tuple[str, tuple[int, ...], GGMLQuantizationType]],
    *,
    keep_dims: bool = False,
) -> FileLayout:
    infos, relative, placed = [], 0, []
    for tensor, shape, type_ in tensors:
        if not keep_dims:
            # a matrix of one row is stored as a vector
            shape = tuple(reversed(ggml_shape(shape)))
        infos.append(_tensor_info(tensor, shape, type_, relative))
        size = tensor_bytes(type_, shape)
        placed.append((tensor, shape, type_, relative, size))
        relative += padded(size)
    head = MAGIC + struct.pack("<IQQ", VERSION, len(placed), len(keys))
    head += b"".join(key.pack() for key in keys) + b"".join(infos)
    head += b"\0" * (padded(len(head)) - len(head))
    slots = tuple(Slot(tensor, shape, type_, len(head) + offset, size) for tensor, shape, type_, offset, size in placed)
    return FileLayout(name, head, slots, len(head) + relative)


def ggml_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Dimensions in GGUF order: innermost first, without trailing ones (ggml_n_dims)."""
    dims = list(reversed(shape))
    while len(dims) > 1 and dims[-1] == 1:
        dims.pop()
    return tuple(dims)


def _tensor_info(name: str, shape: Sequence[int], type_: GGMLQuantizationType, offset: int) -> bytes:
    text, dims = name.encode("utf-8"), tuple(reversed(shape))
    return struct.pack("<Q", len(text)) + text + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, int(type_), offset)
