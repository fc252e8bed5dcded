"""Gram matrices of the inputs of a GGUF's weights, by llama.cpp itself: what error feedback needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import PassingError
from quantkit.llamacpp.session import LlamaSession
from quantkit.llamacpp.squares import TensorSums
from quantkit.progress import Progress
from quantkit.stream.statistics import Statistics
from quantkit.texts.mixed import HELD_OUT

BYTES_OF_PAIR = 8
"""Bytes that each element of a Gram matrix takes: it, and that of the samples held out, in float32."""


@dataclass(frozen=True)
class Input:
    """The input of matrix `number` of each of `tensors`, of `width` values: the same rows for all of them."""

    tensors: tuple[str, ...]
    number: int
    width: int

    @property
    def nbytes(self) -> int:
        """Bytes of its Gram matrices."""
        return BYTES_OF_PAIR * self.width**2


def distinct_inputs(sums: Mapping[str, TensorSums], tensors: Sequence[str]) -> list[Input]:
    """The distinct inputs of `tensors`: tensors of one layer whose sums are equal share their inputs."""
    groups: dict[tuple[str, bytes, bytes], list[str]] = {}
    for name in tensors:
        entry, layer = sums[name], name.split(".")[1]
        groups.setdefault((layer, entry.sums.tobytes(), entry.counts.tobytes()), []).append(name)
    return [
        Input(tuple(names), number, sums[names[0]].sums.shape[1])
        for names in groups.values()
        for number in range(len(sums[names[0]].sums))
    ]


def batches(inputs: Sequence[Input], memory: int) -> list[list[Input]]:
    """The inputs in order, in batches whose Gram matrices take at most `memory` bytes; at least one a batch."""
    result: list[list[Input]] = []
    remaining = 0
    for entry in inputs:
        if not result or entry.nbytes > remaining:
            result.append([])
            remaining = memory
        result[-1].append(entry)
        remaining -= entry.nbytes
    return result


@dataclass(frozen=True)
class StoredGram:
    """Gram matrices of one input in files, and their tokens."""

    gram: Path
    held_out: Path
    tokens: int
    held_out_tokens: int

    def load(self, squares: NDArray[np.float64], tokens: int) -> Statistics:
        """The statistics with these sums of squares over `tokens`. The files are removed.

        Raises:
            PassingError: a file cannot be read; a rerun makes it again.
        """
        try:
            gram, held_out = np.load(self.gram), np.load(self.held_out)
        except (OSError, ValueError, EOFError) as error:
            raise PassingError(f"cannot read {self.gram} ({error}); run the same command again") from error
        self.gram.unlink()
        self.held_out.unlink()
        return Statistics(squares, tokens, gram, self.tokens, held_out, self.held_out_tokens)


def input_grams(
    model: Path, tokens: NDArray[np.int32], inputs: Sequence[Input], folder: Path, *, threads: int, progress: Progress
) -> list[StoredGram]:
    """Evaluate `tokens` (windows, length) and write the Gram matrices of `inputs` into `folder`, in their order.

    Every fourth window is held out. Weights stay on the CPU.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        QuantkitError: llama.cpp cannot run the file.
    """
    with LlamaSession(model) as session:
        wanted = [[entry.tensors[0], entry.number, entry.width] for entry in inputs]
        session.ask(
            {
                "task": "grams_open",
                "model": str(model.absolute()),
                "n_threads": threads,
                "n_ctx": int(tokens.shape[1]),
                "wanted": wanted,
            }
        )
        for number, window in enumerate(tokens):
            held_out = number % HELD_OUT == HELD_OUT - 1
            session.ask({"task": "grams_window", "tokens": window.tolist(), "held_out": held_out})
            progress.advance(1, f"window {number + 1} of {len(tokens)}")
        counts = session.ask({"task": "grams_save", "folder": str(folder.absolute())})
    return [
        StoredGram(folder / f"{number}.gram.npy", folder / f"{number}.held-out.npy", *pair)
        for number, pair in enumerate(counts)
    ]
