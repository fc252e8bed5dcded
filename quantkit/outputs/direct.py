"""The memory of folders that need no calibration."""

from quantkit.families.base.native import Native
from quantkit.machine import resident_memory
from quantkit.outputs.memory import vocabulary_memory

PIECE_ELEMENTS = 1 << 21
"""Elements of a tensor that a thread reads and encodes at once."""
# A piece as it is read, in float32, divided by its scales, and encoded.
_PIECE_BYTES = 20
_SMALL_MEMORY = 32 << 20


def direct_memory(native: Native, threads: int) -> int:
    """Bytes of memory that writing and checking the folders take."""
    widest = max(tensor.shape[-1] for tensor in native.tensors.values() if tensor.shape)
    piece = max(PIECE_ELEMENTS, 128 * widest)
    vocabulary = vocabulary_memory(native.checkpoint.folder, int(native.config["vocab_size"]), 1)
    writing = resident_memory() + _SMALL_MEMORY + threads * _PIECE_BYTES * piece
    return max(writing, vocabulary.reading, vocabulary.checking)
