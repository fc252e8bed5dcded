"""The protocol of a model that gives logits for windows of token ids."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


class Engine(Protocol):
    """A model that gives logits. It uses little memory before `logits` and after `release`."""

    @property
    def n_vocab(self) -> int:
        """The number of logits of a position."""

    @property
    def resident_bytes(self) -> int:
        """Approximate bytes that stay in memory between two calls of `logits`."""

    def prepare(self, windows: NDArray[np.int32], work: Path, progress: Callable[[int, int], object]) -> None:
        """Take the windows, int32 (n, n_ctx), and do the work that is shared by all of them.

        `work` is an empty folder, or the one of an earlier call with the same windows that was killed.
        """

    def logits(self, window: int) -> Array:
        """Logits (n_scored, n_vocab) after positions n_ctx // 2 .. n_ctx - 2; valid until the next call."""

    def release(self) -> None:
        """Free the memory; the next call of `logits` allocates it again."""
