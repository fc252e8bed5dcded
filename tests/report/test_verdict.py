"""The sentences at the top of a page, each a consequence of the figures under it."""

from quantkit.measurement.reading import read_report
from quantkit.report.verdict import verdict
from tests.report.sample import sample


def test_the_best_comes_first_then_the_smallest_that_is_close_then_the_smallest() -> None:
    first, about, close, smallest = verdict(read_report(sample()))
    assert first == "q8_0 keeps the most: 46% smaller, perplexity +0.070% ± 0.046% on wiki.test.raw."
    assert "only a longer text can tell it from none" in about
    assert close.startswith("q4_k_m is the smallest within 5% of the reference's perplexity: 61% smaller")
    assert smallest.startswith("q2_k is the smallest: 67% smaller, perplexity +93.7% ± 4.4%")
    assert "+159.4% ± 7.1% on 红楼梦.txt" in smallest


def test_a_change_beyond_two_errors_is_not_called_none() -> None:
    document = sample()
    document["models"][1]["quality"][0]["perplexity_ratio"]["error"] = 0.0002
    assert not any(
        "only a longer text can tell it from none" in sentence for sentence in verdict(read_report(document))
    )


def test_a_larger_and_worse_candidate_is_named() -> None:
    document = sample()
    document["models"][4]["bytes"] = 120_000_000
    sentences = verdict(read_report(document))
    assert "q4_k_m is better than q2_k: not larger, closer to the reference." in sentences
    assert sum("is better than" in sentence for sentence in sentences) == 1


def test_one_candidate_is_not_compared_with_itself() -> None:
    document = sample()
    document["models"] = document["models"][:2]
    assert verdict(read_report(document))[0].startswith("q8_0: 46% smaller, perplexity +0.070% ± 0.046%")


def test_without_figures_nothing_is_claimed() -> None:
    document = sample()
    for model in document["models"]:
        model["quality"] = []
    assert verdict(read_report(document)) == []
    assert verdict(read_report({})) == []


def test_a_candidate_whose_perplexity_is_far_below_the_references_is_not_close() -> None:
    document = sample()
    document["models"][2]["quality"][0]["perplexity_ratio"]["value"] = 0.392
    assert not any("within 5%" in sentence for sentence in verdict(read_report(document)))


def test_a_reference_that_is_worse_than_guessing_comes_first() -> None:
    document = sample()
    document["models"][0]["vocabulary"] = 49_152
    plain = verdict(read_report(document))
    document["models"][0]["vocabulary"] = 22
    doubtful = verdict(read_report(document))
    assert doubtful[1:] == plain
    assert "wiki.test.raw is above its vocabulary of 22 tokens" in doubtful[0]


def test_a_candidate_that_only_perplexity_ranks_first_is_named_too() -> None:
    document = sample()
    document["models"][2]["quality"][0]["perplexity_ratio"]["value"] = 1.0002
    _, sentence, *_ = verdict(read_report(document))
    assert sentence == (
        "The two measures rank differently: q8_0 has the smallest KL divergence, q4_k_m the smallest change of"
        " perplexity (+0.02% ± 0.31%)."
    )
