"""Memory of the parts of a conversion that depend on the vocabulary: its tokenizer, and the check of logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.machine import memory_limit, peak_memory, resident_memory
from quantkit.tokenizer.rwkv_world import FILE_NAME as RWKV_WORLD

PROBE_TOKENS = 24
"""Tokens of the text whose logits are compared."""
_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "qwen.tiktoken", "vocab.json", "merges.txt", RWKV_WORLD)
# Bytes of memory per byte of tokenizer files, measured on the vocabularies of Gemma 3, Qwen 2.5 and Llama 3: the parsed
# JSON, or the pipeline while `tokenizers` builds it; and both together with what becomes of them.
_TO_LOAD, _TO_CONVERT = 12, 20
# The reference forward takes slices of matrices; a reader takes pieces of a file.
_FORWARD, _PIECES = 96 << 20, 32 << 20
# The source's logits once; of each output the logits and three arrays of their size while they are compared.
_COMPARED = 4
# Of a process of llama.cpp: Python with libllama, and the graph of a few tokens; a token of its vocabulary, with its
# merge and both maps; the logits in the graph, in the context, as an array and in the file (measured as above).
_LLAMA, _LLAMA_TOKEN, _LLAMA_LOGITS = 64 << 20, 256, 4


@dataclass(frozen=True)
class VocabularyMemory:
    """Bytes that the vocabulary takes: `reading` while a conversion is planned, `checking` while outputs are checked.

    Both count what the process holds at the time of the plan.
    """

    reading: int
    checking: int


def vocabulary_memory(folder: Path | None, n_vocab: int, at_once: int) -> VocabularyMemory:
    """The memory for the tokenizer files in `folder` (None: no tokenizer is loaded) and logits of `n_vocab` tokens.

    `at_once`: outputs that are checked at the same time. A plan has read the tokenizer already, so `reading` is at most
    the peak so far.
    """
    size = sum(path.stat().st_size for path in map(folder.joinpath, _FILES) if path.is_file()) if folder else 0
    resident = resident_memory()
    logits = 4 * PROBE_TOKENS * n_vocab * (1 + _COMPARED * at_once) + _FORWARD if folder else 0
    checking = resident + max(_TO_LOAD * size, logits) + at_once * _PIECES
    return VocabularyMemory(min(peak_memory(), resident + _TO_CONVERT * size) + _PIECES, checking)


def checked_at_once(size: int, threads: int, max_ram: int | None) -> int:
    """How many outputs are checked at the same time, if all have `size` bytes together.

    One for each thread, as long as all of them together are small against the memory.
    """
    memory = min(max_ram or memory_limit(), memory_limit())
    return threads if size < memory // 4 else 1


def llama_memory(sizes: Sequence[int], n_vocab: int, at_once: int) -> int:
    """Bytes of the processes in which llama.cpp computes the logits of files of these sizes, `at_once` at a time."""
    logits = 4 * PROBE_TOKENS * n_vocab * _LLAMA_LOGITS
    return sum(size + _LLAMA + n_vocab * _LLAMA_TOKEN + logits for size in sorted(sizes, reverse=True)[:at_once])
