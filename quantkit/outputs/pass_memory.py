"""Memory of the pass that writes GGUF files: threads and chunks of rows that fit."""

from collections.abc import Sequence

from quantkit.errors import UsageError
from quantkit.machine import cores, resident_memory
from quantkit.outputs.memory import checked_at_once, vocabulary_memory
from quantkit.outputs.model import Model

CHUNK_ELEMENTS = 1 << 19


def vocabulary_size(model: Model) -> int:
    """Rows of the embedding; 0 without one."""
    return next((tensor.n_rows for tensor in model.tensors if tensor.name == "token_embd.weight"), 0)


def fit_memory(model: Model, sizes: Sequence[int], threads: int, max_ram: int | None) -> tuple[int, int, int]:
    """Threads, elements of a chunk and expected peak memory in bytes, within `max_ram` if possible.

    `sizes`: bytes of each output; `threads`: 0 for all cores. The memory is that of the pass or of the checks after it,
    whichever is larger.

    Raises:
        UsageError: one thread with the smallest chunk needs more than `max_ram`.
    """
    threads = threads or cores()
    largest_step = max(tensor.row_step * tensor.n_columns for tensor in model.tensors)
    base = resident_memory() + (48 << 20)
    n_vocab = vocabulary_size(model)

    def peak(threads: int, chunk: int) -> int:
        # source rows, their reordered copy, float32, the finite mask, and one quantized block at a time
        one_pass = base + threads * max(chunk, largest_step) * (4 + 4 + 4 + 1 + 4)
        if model.in_order:
            one_pass += 2 * threads * max(chunk, largest_step) * 4  # rows that wait for a thread
        at_once = min(checked_at_once(sum(sizes), threads, max_ram), len(sizes))
        vocabulary = vocabulary_memory(model.folder, n_vocab, at_once)
        return model.reader_memory + max(one_pass, vocabulary.reading, vocabulary.checking)

    chunk = CHUNK_ELEMENTS
    if max_ram is not None:
        while peak(threads, chunk) > max_ram and (threads > 1 or chunk > 1 << 14):
            threads, chunk = (threads - 1, chunk) if threads > 1 else (threads, chunk // 2)
        if peak(threads, chunk) > max_ram:
            raise UsageError(
                f"--max-ram {max_ram / 1e6:.0f} MB is too small; this conversion needs about"
                f" {peak(threads, chunk) / 1e6:.0f} MB"
            )
    return threads, chunk, peak(threads, chunk)
