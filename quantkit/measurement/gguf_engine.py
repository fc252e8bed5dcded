"""Logits of a GGUF file over windows of text, by llama.cpp in a process that keeps the model loaded."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError
from quantkit.files import reserve
from quantkit.gguf.reader import read_header, shard_paths
from quantkit.llamacpp.session import LlamaSession
from quantkit.measurement.engine import Array
from quantkit.progress import Progress
from quantkit.scratch import drop_scratch, folder_in_memory, make_scratch
from quantkit.texts.windows import n_scored


class GgufEngine:
    """The Engine of a GGUF file, or of the first file of a split GGUF. Settings: llama-perplexity's defaults.

    Raises:
        CheckpointError: the file is not a GGUF, or has no vocabulary.
        MissingExtraError: llama-cpp-python is not installed; raised by the first call of `logits`.
    """

    def __init__(self, path: Path, *, n_threads: int | None = None) -> None:
        self.path, self.n_threads = path, n_threads
        self.header = read_header(path)
        tokens = self.header.value("tokenizer.ggml.tokens")
        if tokens is None:
            raise CheckpointError(f"{path} has no vocabulary, so text cannot be tokenized; convert it again")
        self._n_vocab = len(tokens)
        self.n_bytes = sum(shard.stat().st_size for shard in shard_paths(path))
        self._session: LlamaSession | None = None
        self._windows: NDArray[np.int32] = np.empty((0, 0), np.int32)
        self._spool: Path | None = None
        self._rows: Array | None = None

    @property
    def n_vocab(self) -> int:
        """The number of tokens in the file's vocabulary."""
        return self._n_vocab

    @property
    def resident_bytes(self) -> int:
        """Twice the size of the files."""
        # repacking for the CPU can keep the weights twice
        return 2 * self.n_bytes

    def prepare(self, windows: NDArray[np.int32], work: Path, progress: Progress) -> None:
        """Keep the windows; llama.cpp loads the model at the first call of `logits`."""
        del work, progress
        self._windows = windows

    def logits(self, window: int) -> Array:
        """Logits (n_scored, n_vocab) of one window; valid until the next call.

        Raises:
            QuantkitError: llama.cpp rejects the file or crashes; with its reason.
        """
        n_ctx = self._windows.shape[1]
        if self._session is None:
            self._open(n_ctx)
        assert self._session is not None and self._spool is not None and self._rows is not None
        self._session.ask(
            {
                "task": "window",
                "tokens": self._windows[window].tolist(),
                "first": n_ctx // 2,
                "out": str(self._spool / "logits"),
            }
        )
        return self._rows

    def _open(self, n_ctx: int) -> None:
        self._session = LlamaSession(self.path)
        try:
            self._session.ask({"task": "open", "model": str(self.path), "n_ctx": n_ctx, "n_threads": self.n_threads})
            shape = (n_scored(n_ctx), self.n_vocab)
            self._spool = make_scratch(folder_in_memory(4 * shape[0] * shape[1]))
            reserve(self._spool / "logits", 4 * shape[0] * shape[1])
            self._rows = np.memmap(self._spool / "logits", np.float32, "r+", 0, shape)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """End the child process, which frees the model."""
        if self._session is not None:
            self._session.close()
        self._rows = None  # unmapped before the file is removed
        if self._spool is not None:
            drop_scratch(self._spool)
        self._session = self._spool = None

    def close(self) -> None:
        """Release the memory; nothing else is open."""
        self.release()
