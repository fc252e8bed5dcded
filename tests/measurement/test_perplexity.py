import tempfile
from pathlib import Path

import numpy as np
import pytest

from quantkit.errors import QuantkitError
from quantkit.families import reference_logits
from quantkit.llamacpp.token_ids import vocab_token_ids
from quantkit.measurement.perplexity import Perplexity, perplexity, perplexity_ratio
from tests.forward.test_forward import load
from tests.helpers.progress import Recorded
from tests.helpers.tiny import tiny_llama
from tests.helpers.tiny_tokenizers import CORPUS
from tests.measurement.tiny_gguf import write_tiny_gguf

BOS = 1


@pytest.mark.parametrize(("variant", "adds_bos"), [("mistral", True), ("smollm2", False)])
def test_it_is_the_mean_loss_of_the_second_half_of_each_window(variant: str, adds_bos: bool, tmp_path: Path) -> None:
    """The oracle: numpy's forward and a textbook cross entropy, over the windows llama-perplexity would cut."""
    folder = tiny_llama(tmp_path, dtype="f32", variant=variant)
    model = write_tiny_gguf(folder, tmp_path / "tiny.gguf")
    tensors, config = load(folder)
    ids = [BOS] * adds_bos + vocab_token_ids(model, [CORPUS.removesuffix("\n")])[0]
    n_ctx, n_chunks, losses = 64, 3, []
    for chunk in range(n_chunks):
        window = ids[chunk * n_ctx : (chunk + 1) * n_ctx]
        inputs = [BOS, *window[1:]] if adds_bos else window
        rows = reference_logits(tensors.__getitem__, config, inputs).astype(np.float64)
        log_p = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        losses += [-log_p[i, window[i + 1]] for i in range(n_ctx // 2, n_ctx - 1)]
    progress = Recorded()
    figure = perplexity(model, CORPUS, n_ctx=n_ctx, n_chunks=n_chunks, progress=progress)
    assert (figure.n_chunks, figure.n_tokens) == (n_chunks, len(losses))
    assert figure.value == pytest.approx(np.exp(np.mean(losses)), rel=2e-3)
    standard_error = np.std(losses, ddof=1) / np.sqrt(len(losses))
    assert figure.error == pytest.approx(figure.value * standard_error, rel=5e-3)
    assert progress.reports == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert progress.items[-1] == f"3 of 3: {model.name} {figure.value:.4g}"


def test_without_a_limit_every_whole_window_is_measured(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, dtype="f32", variant="smollm2")
    model = write_tiny_gguf(folder, tmp_path / "tiny.gguf")
    n_tokens = len(vocab_token_ids(model, [CORPUS.removesuffix("\n")])[0])
    assert perplexity(model, CORPUS, n_ctx=128).n_chunks == n_tokens // 128


def test_a_text_too_short_for_a_window_is_refused_with_both_numbers(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, dtype="f32", variant="smollm2")
    model = write_tiny_gguf(folder, tmp_path / "tiny.gguf")
    with pytest.raises(QuantkitError, match=r"has \d+ tokens, but one window needs 512"):
        perplexity(model, "The lazy dog.")


def measured(losses: np.ndarray) -> Perplexity:
    return Perplexity(float(np.exp(losses.mean())), 0.0, len(losses), 1, losses)


def test_a_ratio_is_known_better_than_either_perplexity_because_the_text_is_the_same() -> None:
    rng = np.random.RandomState(3)
    text = rng.gamma(2.0, 1.5, 4000)
    quantized = text + rng.normal(0.05, 0.2, 4000)
    ratio, error = perplexity_ratio(measured(quantized), measured(text))
    assert ratio == pytest.approx(np.exp(quantized.mean()) / np.exp(text.mean()))
    assert error == pytest.approx(ratio * np.std(quantized - text, ddof=1) / np.sqrt(4000), rel=1e-6)
    assert abs(ratio - np.exp(0.05)) < 4 * error < 0.02


def test_perplexities_over_different_texts_are_not_compared() -> None:
    with pytest.raises(QuantkitError, match="over 10 and 11 tokens"):
        perplexity_ratio(measured(np.ones(10)), measured(np.ones(11)))


@pytest.mark.full
def test_real_weights_give_what_llama_perplexity_printed() -> None:
    """`llama-perplexity --chunks 5` of llama.cpp 0c1e57098 said 22.3635 +/- 1.96126 for this file on wiki.test.raw."""
    from demo.inputs import SMOLLM2_GGUF, InputsUnavailable, extract
    from demo.wikitext import wikitext2_test

    with tempfile.TemporaryDirectory() as scratch:
        try:
            model, text = extract(SMOLLM2_GGUF, Path(scratch)), wikitext2_test()
        except InputsUnavailable as error:
            pytest.skip(str(error))
        figure = perplexity(model, text, n_chunks=5)
    assert figure.value == pytest.approx(22.3635, abs=2e-3)
    assert figure.error == pytest.approx(1.96126, abs=2e-3)
