"""The loss of each token of a window, and its KL divergence from a reference.

Threads process a few rows at a time, so that the rows stay in the cache of the processor.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantkit.measurement.engine import Array

TOP = 5
_SLICE_VALUES = 1 << 19
_BLOCK = 512

RECORD = np.dtype(
    [
        ("loss", "f8"),  # -log p of the text's own token, in nats
        ("kl", "f8"),  # KL divergence of the reference's distribution from the model's, nats
        ("change", "f4"),  # p of the text's own token minus the reference's p
        ("top1", "u1"),  # whether the most likely token is the reference's
        ("top5", "u1"),  # how many of the five most likely are among the reference's five
    ]
)
"""The record of a scored token."""


@dataclass(frozen=True)
class Scored:
    """Scores of n rows of logits.

    Attributes:
        norm: log of the sum of the exponentials, float64 (n,).
        loss: -log p of the target, in nats, float64 (n,).
        top: the five most likely tokens in descending order, int64 (n, 5).
    """

    norm: NDArray[np.float64]
    loss: NDArray[np.float64]
    top: NDArray[np.int64]

    @property
    def finite(self) -> bool:
        """Whether every row gives a distribution: without NaN, and without infinities that prevent one."""
        return bool(np.isfinite(self.norm).all() and np.isfinite(self.loss).all())


class Scorer:
    """Scores windows with `threads` threads; a context manager."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads)

    def score(self, rows: Array, targets: NDArray[np.int32]) -> Scored:
        """Score rows of logits, float32 (n, n_vocab), against the token ids `targets`, int32 (n,)."""
        n, n_vocab = rows.shape
        norm, loss = np.empty(n), np.empty(n)
        top = np.empty((n, min(TOP, n_vocab)), np.int64)

        @np.errstate(invalid="ignore")
        def score_slice(start: int, stop: int) -> None:
            part = rows[start:stop]
            # exponentials in float32, summed in float64, as llama.cpp does
            largest = part.max(axis=1)
            exponentials = part - largest[:, None]
            np.exp(exponentials, out=exponentials)
            log_sum = np.log(exponentials.sum(axis=1, dtype=np.float64))
            norm[start:stop] = log_sum + largest
            loss[start:stop] = log_sum - (part[np.arange(stop - start), targets[start:stop]] - largest)
            top[start:stop] = _most_likely(part, top.shape[1])

        self._in_slices(score_slice, n, n_vocab)
        return Scored(norm, loss, top)

    def compare(self, reference: Array, scored: Scored, rows: Array, candidate: Scored) -> NDArray[np.void]:
        """The RECORD of each row, (n,).

        KL(p || q) = sum of p (log p - log q) over the whole vocabulary; p is the reference's distribution.

        Args:
            reference: logits of the reference, float32 (n, n_vocab).
            scored: scores of `reference`.
            rows: logits of the candidate, float32 (n, n_vocab).
            own: scores of `rows`.
        """
        n, n_vocab = rows.shape
        result = records(candidate)

        @np.errstate(invalid="ignore", over="ignore")
        def score_slice(start: int, stop: int) -> None:
            p = reference[start:stop] - scored.norm[start:stop, None].astype(np.float32)
            np.exp(p, out=p)
            apart = reference[start:stop] - rows[start:stop]
            # a token with p = 0 contributes 0, even where q is infinite
            apart[p == 0] = 0
            total = p.sum(axis=1, dtype=np.float64)
            p *= apart
            result["kl"][start:stop] = p.sum(axis=1, dtype=np.float64) / total

        self._in_slices(score_slice, n, n_vocab)
        result["kl"] += candidate.norm - scored.norm
        result["change"] = np.exp(-candidate.loss) - np.exp(-scored.loss)
        result["top1"] = candidate.top[:, 0] == scored.top[:, 0]
        result["top5"] = (candidate.top[:, :, None] == scored.top[:, None, :]).any(axis=2).sum(axis=1)
        return result

    def _in_slices(self, work: Callable[[int, int], None], n: int, n_vocab: int) -> None:
        step = max(1, _SLICE_VALUES // n_vocab)
        starts = range(0, n, step)
        for _ in self._pool.map(lambda start: work(start, min(start + step, n)), starts):
            pass

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


def records(scored: Scored) -> NDArray[np.void]:
    """RECORD of each row of the reference: KL divergence 0, full agreement."""
    result = np.zeros(len(scored.loss), RECORD)
    result["loss"], result["top1"], result["top5"] = scored.loss, 1, scored.top.shape[1]
    return result


def _most_likely(rows: Array, count: int) -> NDArray[np.int64]:
    """Indices (n, count) of the largest values of each row, the largest first.

    The largest values are in the blocks with the largest maxima, so only these blocks are sorted.
    """
    n, width = rows.shape
    n_blocks = width // _BLOCK
    if n_blocks <= 2 * count:
        return _largest(rows, count)
    maxima = rows[:, : n_blocks * _BLOCK].reshape(n, n_blocks, _BLOCK).max(axis=2)
    blocks = np.sort(_largest(maxima, count), axis=1)
    at = (blocks[:, :, None] * _BLOCK + np.arange(_BLOCK)).reshape(n, -1)
    tail = np.broadcast_to(np.arange(n_blocks * _BLOCK, width), (n, width - n_blocks * _BLOCK))
    at = np.concatenate([at, tail], axis=1)
    return np.take_along_axis(at, _largest(np.take_along_axis(rows, at, axis=1), count), axis=1)


def _largest(rows: Array, count: int) -> NDArray[np.int64]:
    part = np.sort(np.argpartition(-rows, count - 1, axis=1)[:, :count], axis=1)
    order = np.argsort(-np.take_along_axis(rows, part, axis=1), axis=1, kind="stable")
    return np.take_along_axis(part, order, axis=1)
