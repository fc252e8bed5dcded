"""The protocol of a model that gives logits for windows of token ids."""

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantkit.progress import Progress

Array = NDArray[np.float32]


class Engine(Protocol):
    """A model that gives logits. Before `logits` and after `release` it uses little memory."""

    @property
    def n_vocab(self) -> int:
        """The number of logits of a position."""

    @property
    def resident_bytes(self) -> int:
        """Approximate bytes that stay in memory between two calls of `logits`."""

    def prepare(self, windows: NDArray[np.int32], work: Path, progress: Progress) -> None:
        """Do the work that all windows share.

        Args:
            windows: token ids, int32 (n, n_ctx).
            work: an empty folder, or the folder of a killed call with the same windows, which then resumes.
            progress: receives the stages of the work.
        """

    def logits(self, window: int) -> Array:
        """Logits after positions n_ctx // 2 .. n_ctx - 2, (n_scored, n_vocab); valid until the next call."""

    def release(self) -> None:
        """Free the memory; the next call of `logits` allocates it again."""
