import numpy as np
import pytest

from quantkit.measurement.scores import Scorer
from quantkit.measurement.summary import difference_of, kl_document, perplexity_of, quality_document, ratio_of


def random_logits(rows: int, n_vocab: int, seed: int, scale: float = 3.0) -> np.ndarray:
    return np.random.RandomState(seed).normal(1.0, scale, (rows, n_vocab)).astype(np.float32)


def log_softmax(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    rows = rows - rows.max(axis=1, keepdims=True)
    return np.asarray(rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)))


@pytest.mark.parametrize("n_vocab", [7, 300, 3001, 49152])
@pytest.mark.parametrize("threads", [1, 3])
def test_every_figure_is_its_textbook_formula_in_float64(n_vocab: int, threads: int) -> None:
    reference, rows = random_logits(37, n_vocab, 0), random_logits(37, n_vocab, 1)
    rows = reference + 0.3 * rows + 5  # like the reference's, and shifted, which a softmax does not see
    targets = np.random.RandomState(2).randint(0, n_vocab, 37).astype(np.int32)
    with Scorer(threads) as scorer:
        scored, own = scorer.score(reference, targets), scorer.score(rows, targets)
        records = scorer.compare(reference, scored, rows, own)
    log_p, log_q = log_softmax(reference), log_softmax(rows)
    positions = np.arange(37)
    np.testing.assert_allclose(records["loss"], -log_q[positions, targets], rtol=2e-6)
    np.testing.assert_allclose(records["kl"], (np.exp(log_p) * (log_p - log_q)).sum(axis=1), rtol=2e-5, atol=1e-6)
    expected = np.exp(log_q[positions, targets]) - np.exp(log_p[positions, targets])
    np.testing.assert_allclose(records["change"], expected, rtol=1e-4, atol=1e-9)
    assert records["top1"].tolist() == (rows.argmax(axis=1) == reference.argmax(axis=1)).tolist()
    best = [np.argsort(-logits, axis=1)[:, :5] for logits in (reference, rows)]
    assert records["top5"].tolist() == [len(set(a) & set(b)) for a, b in zip(*best, strict=True)]
    np.testing.assert_array_equal(own.top, best[1])


def test_a_model_differs_from_itself_by_exactly_nothing() -> None:
    rows = random_logits(50, 5000, 3)
    targets = np.arange(50, dtype=np.int32)
    with Scorer(2) as scorer:
        scored = scorer.score(rows, targets)
        records = scorer.compare(rows, scored, rows.copy(), scorer.score(rows.copy(), targets))
    assert (records["kl"] == 0).all() and (records["change"] == 0).all()
    assert (records["top1"] == 1).all() and (records["top5"] == 5).all()
    document = quality_document("text", records, records)
    assert document["perplexity_difference"] == {"value": 0.0, "error": 0.0}
    assert document["perplexity_ratio"] == {"value": 1.0, "error": 0.0}
    assert document["top1"]["value"] == document["top5"]["value"] == 1.0


def test_tokens_that_cannot_come_do_not_count_and_others_that_cannot_make_it_infinite() -> None:
    reference, rows = random_logits(2, 100, 4), random_logits(2, 100, 5)
    reference[0, 7] = rows[0, 7] = -np.inf
    rows[1, 7] = -np.inf
    targets = np.zeros(2, np.int32)
    with Scorer(1) as scorer:
        scored, own = scorer.score(reference, targets), scorer.score(rows, targets)
        records = scorer.compare(reference, scored, rows, own)
    some = np.arange(100) != 7
    log_p, log_q = log_softmax(reference[:1, some]), log_softmax(rows[:1, some])
    assert records["kl"][0] == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(), rel=1e-5)
    assert records["kl"][1] == np.inf


def test_rows_with_nan_are_known() -> None:
    rows = random_logits(4, 100, 6)
    rows[2, 50] = np.nan
    with Scorer(1) as scorer, np.errstate(invalid="ignore"):
        assert not scorer.score(rows, np.zeros(4, np.int32)).finite
        assert scorer.score(rows[:2], np.zeros(2, np.int32)).finite


def test_errors_of_paired_figures_are_those_that_resampling_the_text_gives() -> None:
    """The oracle is the bootstrap: texts drawn from the tokens again and again."""
    rng = np.random.RandomState(7)
    reference = rng.gamma(2.0, 1.2, 3000)
    own = reference + rng.normal(0.06, 0.3, 3000)
    ratios, differences = [], []
    for _ in range(800):
        drawn = rng.randint(0, 3000, 3000)
        one, other = np.exp(own[drawn].mean()), np.exp(reference[drawn].mean())
        ratios.append(one / other)
        differences.append(one - other)
    assert ratio_of(own, reference).error == pytest.approx(np.std(ratios), rel=0.1)
    assert difference_of(own, reference).error == pytest.approx(np.std(differences), rel=0.1)
    assert difference_of(own, reference).error < 0.2 * perplexity_of(own).error


def test_the_histogram_of_kl_counts_every_token() -> None:
    kl = np.concatenate([np.zeros(10), np.logspace(-8, 3, 90)])
    document = kl_document(kl)
    assert sum(document["histogram"]["counts"]) == 100
    assert len(document["histogram"]["edges"]) == len(document["histogram"]["counts"]) + 1
    assert document["p99"] == pytest.approx(np.quantile(kl, 0.99))
