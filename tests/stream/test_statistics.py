"""Sums over tokens: the same whatever the number of threads and however wide the input is."""

import numpy as np
import pytest

from quantkit.stream import statistics
from quantkit.stream.statistics import Statistics
from quantkit.workers import Workers


def sums(threads: int, pieces: list[np.ndarray]) -> Statistics:
    entry = Statistics.of(pieces[0].shape[1], gram=True)
    with Workers(threads) as workers:
        entry.add(pieces, [pieces[0][:5]], workers)
    return entry


@pytest.mark.parametrize("width", [40, 130])
def test_a_wide_gram_matrix_is_summed_in_blocks_to_the_same_values(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are 1024 columns in use; 24 here, so that several of them and a shorter last one take part."""
    monkeypatch.setattr(statistics, "_BLOCK", 24)
    rng = np.random.default_rng(0)
    pieces = [rng.standard_normal((n, width)).astype(np.float32) for n in (70, 1, 33)]
    alone = sums(1, pieces)
    x = np.concatenate([*pieces, pieces[0][:5]]).astype(np.float64)
    assert alone.is_wide == (width > 48)
    assert alone.gram == pytest.approx(x.T @ x, rel=1e-4, abs=1e-3)
    assert np.array_equal(alone.gram, alone.gram.T) if alone.gram is not None else False
    assert (alone.tokens, alone.gram_tokens) == (104, 109)
    for threads in (2, 7):
        other = sums(threads, pieces)
        assert np.array_equal(other.gram, alone.gram)  # type: ignore[arg-type]
        assert np.array_equal(other.squares, alone.squares)
