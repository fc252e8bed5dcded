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
    entry.finish()
    return entry


@pytest.mark.parametrize("width", [40, 130])
def test_a_wide_gram_matrix_is_summed_in_blocks_to_the_same_values(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are 1024 columns in use; 24 here, so that several of them and a shorter last one take part."""
    monkeypatch.setattr(statistics, "WIDE_BLOCK", 24)
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


@pytest.mark.parametrize("width", [40, 130])
def test_every_fourth_sample_is_held_out_however_the_samples_come(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "WIDE_BLOCK", 24)
    rng = np.random.default_rng(1)
    pieces = [rng.standard_normal((5 + n, width)).astype(np.float32) for n in range(11)]
    for batch in (1, 3, 11):
        entry = Statistics.of(width, gram=True)
        for start in range(0, 11, batch):
            entry.add(pieces[start : start + batch])
        entry.finish()
        held = np.concatenate([pieces[3], pieces[7]]).astype(np.float64)
        everything = np.concatenate(pieces).astype(np.float64)
        assert entry.held_out == pytest.approx(held.T @ held, rel=1e-4, abs=1e-3)
        assert entry.gram == pytest.approx(everything.T @ everything, rel=1e-4, abs=1e-3)
        assert (entry.held_out_tokens, entry.gram_tokens) == (len(held), len(everything))
