"""Weights to fill probes with: those of the measured model, or random ones.

Zeros would be too fast. On x86-64 ggml looks up the float of each block's 16-bit scale in a table of 256 KB
(ggml_lookup_fp16_to_fp32 of ggml-cpu). Equal scales are one entry; those of a real model fall out of the first cache.
"""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from quantkit.errors import CheckpointError, QuantkitError
from quantkit.gguf.kernels import quantize_rows, requires_imatrix
from quantkit.gguf.layout import Slot
from quantkit.gguf.reader import read_header, shard_paths
from quantkit.gguf.types import block_size

_TENSORS, _PIECE = 16, 1 << 17
_ROWS, _COLUMNS = 64, 1024


class Weights:
    """Weights of one type, as bytes of whole blocks that repeat without end."""

    def __init__(self, blocks: bytes) -> None:
        self._blocks, self._next = blocks, 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes, a multiple of a block's."""
        start, self._next = self._next, (self._next + size) % len(self._blocks)
        return (self._blocks * -(-(start + size) // len(self._blocks)))[start : start + size]


def model_weights(model: Path, type_: GGMLQuantizationType) -> Weights:
    """Weights of a type from several tensors of a GGUF file.

    Raises:
        CheckpointError: not a GGUF, a shard is missing, or the file has no tensor of the type.
        OSError: the file cannot be read.
    """
    tensors: list[tuple[Path, Slot]] = []
    for path in shard_paths(model):
        tensors += [(path, slot) for slot in read_header(path).tensors if slot.type == type_]
    if not tensors:
        raise CheckpointError(f"{model.name} has no tensor of type {type_.name.lower()}")
    size = block_size(type_)[1]
    pieces = []
    for path, slot in tensors[:: -(-len(tensors) // _TENSORS)]:
        with path.open("rb") as file:
            file.seek(slot.offset)
            pieces.append(file.read(min(slot.nbytes, _PIECE // size * size)))
    return Weights(b"".join(pieces))


def random_weights(type_: GGMLQuantizationType) -> Weights:
    """Normal weights whose deviation differs by row; zeros if no kernel can write the type."""
    rng = np.random.default_rng(0)
    deviation = np.exp(0.3 * rng.standard_normal((_ROWS, 1))) / np.sqrt(_COLUMNS)
    rows = (deviation * rng.standard_normal((_ROWS, _COLUMNS))).astype(np.float32)
    importance = np.ones(_COLUMNS, np.float32) if requires_imatrix(type_) else None
    try:
        return Weights(quantize_rows(type_, rows, importance).tobytes())
    except QuantkitError:
        elements, size = block_size(type_)
        return Weights(bytes(rows.size // elements * size))
