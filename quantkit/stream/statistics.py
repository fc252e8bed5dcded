"""Statistics of a linear's input: sums over tokens. The tokens are not kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.forward.arrays import Array, as_bfloat16, device, fetch, namespace, place, product
from quantkit.texts.mixed import HELD_OUT
from quantkit.workers import SERIAL, Workers, parts

SAMPLED = 8
"""Rows of a piece that are kept, evenly spread."""
MOST_SAMPLED = 256
WIDE_BLOCK = 1024
"""Rows and columns of a tile of a wide Gram matrix; up to twice that, all are summed together."""
_WAITING_BYTES = 128 << 20  # limit of the inputs of linears that wait for summation


@dataclass
class Statistics:
    """Sums over the tokens of one distinct input x of `width` values.

    `squares`: the sum of x^2, float64 (width,), for the importance matrix. `tokens`: the number of tokens in `squares`.
    `gram`: H, the sum of x x', float32 (width, width), where a format needs it. `gram_tokens`: the number of tokens in
    `gram`; it exceeds `tokens` for an expert that received too few tokens and is calibrated on extra ones.
    `held_out`: the Gram matrix of every fourth sample alone, which is a part of `gram`; `held_out_tokens`: its tokens.
    With `gram` also `maxima`, the largest |x| of each channel, float32 (width,), and `rows`, some x, at most
    MOST_SAMPLED: what the rounding of activations costs depends on both. Both Gram matrices are on the device of the
    inputs. `halves`: they are summed over inputs rounded to bfloat16, as their linears receive them.
    """

    squares: NDArray[np.float64]
    tokens: int = 0
    gram: Array | None = None
    gram_tokens: int = 0
    held_out: Array | None = None
    held_out_tokens: int = 0
    pieces: int = 0
    maxima: Array | None = None
    rows: list[Array] = field(default_factory=list)
    halves: bool = False

    @classmethod
    def of(cls, width: int, *, gram: bool, to: Any = None, halves: bool = False) -> "Statistics":
        """Empty statistics of an input of this width; with `gram`, of its Gram matrix too, on the device `to`."""
        if not gram:
            return cls(np.zeros(width))
        total, held_out = (place(np.zeros((width, width), np.float32), to) for _ in range(2))
        maxima = np.zeros(width, np.float32)
        return cls(np.zeros(width), gram=total, held_out=held_out, maxima=maxima, halves=halves)

    def fetched(self) -> "Statistics":
        """The statistics with arrays of numpy; itself if they are."""
        if self.gram is None or self.held_out is None or device(self.gram) is None:
            return self
        return replace(self, gram=fetch(self.gram), held_out=fetch(self.held_out))

    @property
    def is_wide(self) -> bool:
        """Whether the Gram matrix is summed in tiles, and `finish` completes it."""
        return self.gram is not None and len(self.gram) > 2 * WIDE_BLOCK

    def add(self, pieces: Sequence[Array], extra: Sequence[Array] = (), workers: Workers = SERIAL) -> None:
        """Count the tokens of `pieces`, each (n, width); those of `extra` go into the Gram matrix only.

        The sums do not depend on the number of workers.
        """
        for piece in pieces:
            self.squares += fetch(namespace(piece).einsum("ij,ij->j", piece, piece))
            self.tokens += len(piece)
        if self.gram is None or self.held_out is None or self.maxima is None:
            return
        for piece in (*pieces, *extra):
            self._look_at(piece, self.maxima)
        fitted: list[Array] = list(extra)
        held_out: list[Array] = []
        for piece in pieces:
            self.pieces += 1
            (held_out if self.pieces % HELD_OUT == 0 else fitted).append(piece)
        self.gram_tokens += self._add_gram(fitted, [self.gram], workers)
        count = self._add_gram(held_out, [self.gram, self.held_out], workers)
        self.gram_tokens += count
        self.held_out_tokens += count

    def finish(self) -> None:
        """Complete wide Gram matrices, of which `add` sums the lower triangle; after the last `add`."""
        for gram in (self.gram, self.held_out):
            if gram is not None and self.is_wide and device(gram) is None:
                for rows, columns in _lower_tiles(len(gram)):
                    if rows != columns:
                        gram[columns, rows] = gram[rows, columns].T

    def _look_at(self, piece: Array, maxima: Array) -> None:
        if not len(piece):
            return
        of = namespace(piece)
        np.maximum(maxima, fetch(of.amax(of.abs(piece), 0)), out=maxima)
        missing = MOST_SAMPLED - sum(map(len, self.rows))
        if missing > 0:
            self.rows.append(fetch(piece[:: -(-len(piece) // SAMPLED)][:missing]).copy())

    def _add_gram(self, pieces: Sequence[Array], sums: Sequence[Array], workers: Workers) -> int:
        """Add x x' of all tokens of `pieces` to each of `sums`; the number of tokens."""
        pieces = [piece for piece in pieces if len(piece)]
        if not pieces:
            return 0
        x = pieces[0] if len(pieces) == 1 else namespace(pieces[0]).concatenate(pieces)
        width = x.shape[1]
        if width <= 2 * WIDE_BLOCK or device(x) is not None:
            # one array and its own transpose: BLAS computes half of it (syrk)
            squares = product(x.T, as_bfloat16(x) if self.halves else x)
            for gram in sums:
                gram += squares
            return len(x)

        def add_tile(tile: tuple[slice, slice]) -> None:
            rows, columns = tile
            products = x[:, rows].T @ x[:, columns]
            for gram in sums:
                gram[rows, columns] += products

        workers.map(add_tile, _lower_tiles(width))
        return len(x)


def _lower_tiles(width: int) -> list[tuple[slice, slice]]:
    """Rows and columns of the tiles on and below the diagonal of a wide Gram matrix."""
    blocks = list(parts(width, WIDE_BLOCK))
    return [(rows, columns) for number, rows in enumerate(blocks) for columns in blocks[: number + 1]]


def samples_at_once(width: int, seq_len: int) -> int:
    """Number of samples that may wait for the sums of `width` values a token, for any number of threads."""
    return max(1, int(_WAITING_BYTES // (4 * max(width, 1) * seq_len)))


def add_inputs(
    statistics: Mapping[str, Statistics],
    taps: Sequence[Mapping[str, Array]],
    extra: Sequence[Mapping[str, Array]] = (),
    workers: Workers = SERIAL,
) -> None:
    """Add the inputs of the linears in the order of samples: narrow inputs side by side, wide ones one by one.

    taps, extra: by sample, the input of each key, see `Statistics.add`.
    """

    def add(key: str, shared: Workers = SERIAL) -> None:
        pieces = [tap[key] for tap in taps if key in tap]
        statistics[key].add(pieces, [tap[key] for tap in extra if key in tap], shared)

    wide = [key for key, entry in statistics.items() if entry.is_wide]
    workers.map(add, [key for key in statistics if key not in wide])
    for key in wide:
        add(key, workers)
