"""The layout of a packed folder, known before the first byte is written: files, offsets, the index of shards.

Format: https://github.com/huggingface/safetensors#format; names as transformers writes them.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from json.encoder import encode_basestring_ascii
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.tensor import DTYPE_BITS

MAX_SHARD = 5_000_000_000
"""Bytes of tensors in a shard: the limit that transformers uses."""
INDEX = "model.safetensors.index.json"
_PREFIX, _ALIGNMENT = 8, 8
_WIDEST = 4
_OPENING = '{"__metadata__":{"format":"pt"}'
_OFFSETS = ',"data_offsets":['
_POWERS_OF_TEN = 10 ** np.arange(1, 19, dtype=np.int64)

Stated = tuple[str, str, tuple[int, ...]]
"""A planned tensor: name, safetensors dtype ("F16", "BF16", "F32", "I32"), shape."""

Parts = tuple[Stated, ...]
"""The tensors of one weight; their names are what follows the name of the weight."""


class Place(NamedTuple):
    """A tensor in its file; `offset` is from the start of the file, sizes are in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def matrix(self, index: int) -> "Place":
        """The place of one matrix of a stack."""
        size = self.nbytes // self.shape[0]
        return Place(matrix_name(self.name, index), self.dtype, self.shape[1:], self.offset + index * size, size)


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its name, its first bytes (length and header), its tensors, its size in bytes."""

    name: str
    header: bytes
    places: tuple[Place, ...]
    size: int


def matrix_name(name: str, index: int) -> str:
    """The name of one matrix of the stack `name`, for writers and their records; a file has the stack alone."""
    return f"{name}[{index}]"


@lru_cache(maxsize=1024)
def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor. A mixture has tens of thousands of tensors of a few shapes."""
    return DTYPE_BITS[dtype] // 8 * prod(shape)


def plan_folder(tensors: Sequence[Stated], max_shard: int = MAX_SHARD) -> list[Shard]:
    """Files for `tensors`, in this order: `model.safetensors`, or shards of at most `max_shard` tensor bytes.

    A larger tensor has a separate shard. Within a file, tensors whose size is not a multiple of four come last. Readers
    map tensors in place and need them aligned to their elements.
    """
    groups: list[list[Stated]] = [[]]
    filled = 0
    for tensor in tensors:
        size = tensor_bytes(tensor[1], tensor[2])
        if groups[-1] and filled + size > max_shard:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += size
    if len(groups) == 1:
        return [_shard("model.safetensors", groups[0])]
    count = len(groups)
    return [_shard(f"model-{i + 1:05d}-of-{count:05d}.safetensors", group) for i, group in enumerate(groups)]


def every_tensor(weights: Iterable[tuple[str, Parts]]) -> list[Stated]:
    """The tensors of `weights` (name, parts), in order."""
    return [(name + suffix, dtype, shape) for name, parts in weights for suffix, dtype, shape in parts]


def folder_bytes(weights: Sequence[tuple[str, Parts]], max_shard: int = MAX_SHARD) -> tuple[int, int]:
    """(bytes of the files, bytes of the tensors) of `plan_folder(every_tensor(weights), max_shard)`.

    No header is made: a mixture has hundreds of thousands of tensors, but weights of a few kinds only.
    """
    numbers: dict[Parts, int] = {}
    kind = np.array([numbers.setdefault(parts, len(numbers)) for _, parts in weights], np.intp)
    flat = [part for parts in numbers for part in parts]
    bytes_of = [tensor_bytes(dtype, shape) for _, dtype, shape in flat]
    if max(bytes_of, default=0) * len(kind) * len(flat) >= 1 << 62:  # too large for numpy's integers
        shards = plan_folder(every_tensor(weights), max_shard)
        return total_bytes(shards), sum(placed.nbytes for shard in shards for placed in shard.places)
    # `at`: the place in `flat` of each tensor of the folder
    counts = np.array([len(parts) for parts in numbers], np.intp)
    repeats = counts[kind]
    firsts, starts = (np.cumsum(counts) - counts)[kind], np.cumsum(repeats) - repeats
    at = np.arange(repeats.sum()) + np.repeat(firsts - starts, repeats)
    sizes = np.array(bytes_of, np.int64)[at]
    # a name has its quotes once, with the name of its weight
    texts = np.array([len(encode_basestring_ascii(name)) - 2 + len(_facts(*facts)) for name, *facts in flat], np.int64)[
        at
    ]
    texts += np.repeat([len(encode_basestring_ascii(name)) for name, _ in weights], repeats)
    ends, start, total = np.cumsum(sizes), 0, 0
    while start < len(sizes) or not start:
        before = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, before + max_shard, side="right")), start + 1)
        total += _file_bytes(sizes[start:stop], texts[start:stop])
        start = stop
    return total, int(sizes.sum())


def _file_bytes(sizes: NDArray[np.int64], texts: NDArray[np.int64]) -> int:
    """Bytes of a file of tensors of `sizes` bytes, whose names and facts take `texts` bytes in its header."""
    sizes = sizes[np.argsort(sizes % _WIDEST != 0, kind="stable")]
    ends = np.cumsum(sizes)
    digits = sum(int(np.searchsorted(_POWERS_OF_TEN, at, side="right").sum()) for at in (ends, ends - sizes))
    marks = len(f",:{_OFFSETS},]}}") + 2  # the digits are counted less one
    header = len(_OPENING) + int(texts.sum()) + digits + marks * len(sizes) + len("}")
    return _PREFIX + -(-header // _ALIGNMENT) * _ALIGNMENT + int(sizes.sum())


def index_json(shards: Sequence[Shard]) -> bytes | None:
    """The bytes of `model.safetensors.index.json`; None if there is only one file."""
    if len(shards) == 1:
        return None
    weight_map = {placed.name: shard.name for shard in shards for placed in shard.places}
    total = sum(placed.nbytes for shard in shards for placed in shard.places)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(index, indent=2) + "\n").encode()


def total_bytes(shards: Iterable[Shard]) -> int:
    """Bytes of all shards."""
    return sum(shard.size for shard in shards)


def _shard(name: str, tensors: Sequence[Stated]) -> Shard:
    sizes = [tensor_bytes(dtype, shape) for _, dtype, shape in tensors]
    if any(size % _WIDEST for size in sizes):
        tensors = sorted(tensors, key=lambda tensor: tensor_bytes(tensor[1], tensor[2]) % _WIDEST != 0)
        sizes = [tensor_bytes(dtype, shape) for _, dtype, shape in tensors]
    ends = list(accumulate(sizes))
    starts = [0, *ends[:-1]]
    # as json.dumps with separators (",", ":") writes it, in less time
    entries = [
        f"{encode_basestring_ascii(tensor)}:{_facts(dtype, shape)}{_OFFSETS}{start},{end}]}}"
        for (tensor, dtype, shape), start, end in zip(tensors, starts, ends, strict=True)
    ]
    text = (",".join([_OPENING, *entries]) + "}").encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    first = _PREFIX + len(text)
    places = tuple(
        Place(tensor, dtype, shape, first + start, size)
        for (tensor, dtype, shape), start, size in zip(tensors, starts, sizes, strict=True)
    )
    return Shard(name, len(text).to_bytes(_PREFIX, "little") + text, places, first + sum(sizes))


@lru_cache(maxsize=1024)
def _facts(dtype: str, shape: tuple[int, ...]) -> str:
    """The beginning of a tensor's entry in a header."""
    return f'{{"dtype":"{dtype}","shape":{json.dumps(list(shape), separators=(",", ":"))}'
