"""Perplexity of a GGUF file as llama.cpp's llama-perplexity tool measures it."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantkit.errors import MeasureError
from quantkit.llamacpp.token_ids import text_tokens
from quantkit.measurement.comparison import ComparedModel, Comparison
from quantkit.measurement.gguf_engine import GgufEngine
from quantkit.measurement.summary import perplexity_of, ratio_of
from quantkit.progress import SILENT, Progress
from quantkit.scratch import scratch_folder
from quantkit.texts.windows import cut_windows


@dataclass(frozen=True)
class Perplexity:
    """A perplexity and its standard error, as llama-perplexity prints them.

    Attributes:
        value: exp of the mean loss per token.
        error: standard error of `value`.
        losses: the loss of each scored token in nats, float64 (n_tokens,).
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
    progress: Progress = SILENT,
) -> Perplexity:
    """Perplexity of `text` in windows of `n_ctx` tokens that do not overlap, as llama-perplexity computes it.

    The text without one trailing newline is tokenized whole. If the vocabulary adds a BOS token, it replaces the first
    token of each window. Only the tokens after position n_ctx / 2 are scored, so each has at least half a window of
    context. These are n_ctx - 1 - n_ctx / 2 tokens of a window. (The usual figure of transformers scores the whole
    window and is higher.)

    Args:
        n_chunks: largest number of windows; None for all.
        n_threads: None for all cores.
        progress: receives one stage, "chunks"; an item ends with the perplexity so far.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        QuantkitError: llama.cpp rejects the file.
        MeasureError: the text has fewer than n_ctx tokens, or a logit is not finite.
    """
    ids, bos = text_tokens(model, text)
    windows = cut_windows(ids, bos, n_ctx=n_ctx, n_chunks=n_chunks, name="the text")
    with scratch_folder() as work:
        compared = ComparedModel(GgufEngine(model, n_threads=n_threads), str(model), model.name)
        comparison = Comparison([compared], [windows], work, threads=1)
        try:
            comparison.run(progress)
            losses = comparison.records(0, 0)["loss"].copy()
        finally:
            comparison.close()
    figure = perplexity_of(losses)
    return Perplexity(figure.value, figure.error, len(losses), len(windows.tokens), losses)


def perplexity_ratio(candidate: Perplexity, reference: Perplexity) -> tuple[float, float]:
    """candidate / reference and its standard error, from losses paired by token (see summary.ratio_of).

    Raises:
        MeasureError: the two have different numbers of tokens.
    """
    if candidate.n_tokens != reference.n_tokens:
        raise MeasureError(
            f"perplexities over {candidate.n_tokens} and {reference.n_tokens} tokens cannot be compared; measure both "
            "on the same text, with the same n_ctx and n_chunks"
        )
    figure = ratio_of(candidate.losses, reference.losses)
    return figure.value, figure.error
