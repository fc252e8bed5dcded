"""Perplexity of a GGUF file as llama.cpp's llama-perplexity tool measures it."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantkit.errors import QuantkitError
from quantkit.measure.llama_runtime import Progress, run_child


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
    progress: Progress | None = None,
) -> Perplexity:
    """Perplexity of `text` in windows of `n_ctx` tokens that do not overlap, at most `n_chunks` of them.

    llama-perplexity's convention: the text (less one trailing newline) is tokenized whole; the first token of each
    window is replaced by BOS when the vocabulary adds one; of each window only the tokens after position n_ctx / 2 are
    scored, so each has at least half a window of context: n_ctx - 1 - n_ctx / 2 tokens a window. (transformers'
    usual figure scores all of a window and is higher.) `progress(done, of, value so far)` is called per window.
    Raises MissingExtraError without llama-cpp-python; QuantkitError when llama.cpp refuses the file, or when the text
    has fewer than 2 * n_ctx tokens.
    """
    if n_ctx < 8 or (n_chunks is not None and n_chunks < 1):
        raise ValueError(f"n_ctx must be at least 8 and n_chunks at least 1, not {n_ctx} and {n_chunks}")
    request = {"task": "perplexity", "model": str(model), "text": text.removesuffix("\n"), "n_ctx": n_ctx}
    answer = run_child({**request, "n_chunks": n_chunks, "n_threads": n_threads}, model, progress=progress)
    losses = np.array(answer["losses"], np.float64)
    value, error = _exp_of_mean(losses)
    return Perplexity(value, error, len(losses), int(answer["n_chunks"]), losses)


def perplexity_ratio(candidate: Perplexity, reference: Perplexity) -> tuple[float, float]:
    """candidate / reference and its standard error, from the losses paired token by token.

    Which text was chosen moves both alike, so this error is many times smaller than the perplexities' own.
    Raises QuantkitError when the two were not measured on the same number of tokens.
    """
    if candidate.n_tokens != reference.n_tokens:
        raise QuantkitError(
            f"perplexities over {candidate.n_tokens} and {reference.n_tokens} tokens cannot be compared: measure both "
            "on the same text, with the same n_ctx and n_chunks"
        )
    return _exp_of_mean(candidate.losses - reference.losses)


def _exp_of_mean(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    value = math.exp(float(values.mean()))
    return value, value * float(values.std()) / math.sqrt(len(values) - 1)
