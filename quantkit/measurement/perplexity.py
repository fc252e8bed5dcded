"""Perplexity of a GGUF file as llama.cpp's llama-perplexity tool measures it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantkit.errors import MeasureError
from quantkit.llamacpp.session import text_tokens
from quantkit.measurement.comparison import Comparison
from quantkit.measurement.gguf_engine import GgufEngine
from quantkit.measurement.summary import perplexity_of, ratio_of
from quantkit.scratch import scratch_folder
from quantkit.texts.windows import cut_windows


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean loss per token and the standard error of that estimate, as the tool prints them.

    `losses` has the loss of each scored token in nats, (n_tokens,) float64.
    """

    value: float
    error: float
    n_tokens: int
    n_chunks: int
    losses: npt.NDArray[np.float64] = field(repr=False, compare=False)


def perplexity(
    model: Path,
    text: str,
    *,
    n_ctx: int = 512,
    n_chunks: int | None = None,
    n_threads: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Perplexity:
    """Perplexity of `text` in windows of `n_ctx` tokens that do not overlap, at most `n_chunks` of them.

    llama-perplexity's convention: the text (less one trailing newline) is tokenized whole; the first token of each
    window is replaced by BOS when the vocabulary adds one; of each window only the tokens after position n_ctx / 2 are
    scored, so each has at least half a window of context: n_ctx - 1 - n_ctx / 2 tokens a window. (transformers'
    usual figure scores all of a window and is higher.) `progress(done, of, value so far)` is called per window.
    Raises MissingExtraError without llama-cpp-python; QuantkitError if llama.cpp refuses the file; MeasureError if
    the text has fewer than n_ctx tokens, or logits are not finite.
    """
    ids, bos = text_tokens(model, text)
    windows = cut_windows(ids, bos, n_ctx=n_ctx, n_chunks=n_chunks, name="the text")
    done = 0
    with scratch_folder() as work:
        engine = GgufEngine(model, n_threads=n_threads)
        comparison = Comparison([engine], [str(model)], [windows], work, threads=1)

        def measured(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None and count:
                progress(done, len(windows.tokens), comparison.perplexity_so_far(0))

        try:
            comparison.run(measured=measured)
            losses = comparison.records(0, 0)["loss"].copy()
        finally:
            comparison.close()
    figure = perplexity_of(losses)
    return Perplexity(figure.value, figure.error, len(losses), len(windows.tokens), losses)


def perplexity_ratio(candidate: Perplexity, reference: Perplexity) -> tuple[float, float]:
    """candidate / reference and its standard error, from the losses paired token by token (see summary.ratio_of).

    Raises MeasureError when the two were not measured on the same number of tokens.
    """
    if candidate.n_tokens != reference.n_tokens:
        raise MeasureError(
            f"perplexities over {candidate.n_tokens} and {reference.n_tokens} tokens cannot be compared; measure both "
            "on the same text, with the same n_ctx and n_chunks"
        )
    figure = ratio_of(candidate.losses, reference.losses)
    return figure.value, figure.error
