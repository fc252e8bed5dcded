"""Perplexity of a GGUF file as llama.cpp's llama-perplexity tool measures it."""

import math
from dataclasses import dataclass
from pathlib import Path

from quantkit.measure.llama_runtime import Progress, run_child


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean loss per token, and the standard error of that estimate, both in the tool's sense."""

    value: float
    error: float
    n_tokens: int
    n_chunks: int


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
    mean, n = float(answer["losses_mean"]), int(answer["n"])
    variance = float(answer["losses_mean_square"]) - mean * mean
    value = math.exp(mean)
    return Perplexity(value, value * math.sqrt(max(variance, 0.0) / (n - 1)), n, int(answer["n_chunks"]))
