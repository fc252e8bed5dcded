"""Evaluation windows: token ids cut into windows without overlap, as in llama-perplexity."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import MeasureError


@dataclass(frozen=True)
class Windows:
    """Windows of a text.

    `tokens`: int32 (n_windows, n_ctx), the model's input. `targets`: int32 (n_windows, n_scored), the correct next
    tokens after positions `first` .. n_ctx - 2. `n_tokens`: tokens of the whole text. `sha256`: of the text in UTF-8.
    """

    name: str
    sha256: str
    n_tokens: int
    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]

    @property
    def first(self) -> int:
        """The first scored position. Every scored token has at least half a window of context."""
        return int(self.tokens.shape[1]) // 2


def n_scored(n_ctx: int) -> int:
    """Scored tokens of a window."""
    return n_ctx - 1 - n_ctx // 2


def cut_windows(
    ids: Sequence[int], bos: int | None, *, n_ctx: int, n_chunks: int | None, name: str, sha256: str = ""
) -> Windows:
    """Cut the first `n_chunks` windows (None: all) from the token ids of a text, including the tokenizer's BOS and EOS.

    `bos`: replaces the first token of every window; None for a vocabulary that adds none. Source: llama.cpp's
    tools/perplexity.

    Raises:
        MeasureError: the text is shorter than one window.
        ValueError: n_ctx is less than 8 or n_chunks less than 1.
    """
    if n_ctx < 8 or (n_chunks is not None and n_chunks < 1):
        raise ValueError(f"n_ctx must be at least 8 and n_chunks at least 1, not {n_ctx} and {n_chunks}")
    if len(ids) < n_ctx:
        raise MeasureError(
            f"{name} has {len(ids)} tokens, but one window needs {n_ctx}; pass a longer text or a smaller --ctx"
        )
    count = min(len(ids) // n_ctx, n_chunks or len(ids))
    tokens = np.array(ids[: count * n_ctx], np.int32).reshape(count, n_ctx)
    targets = tokens[:, n_ctx // 2 + 1 :].copy()
    if bos is not None:
        tokens[:, 0] = bos
    return Windows(name, sha256, len(ids), tokens, targets)
