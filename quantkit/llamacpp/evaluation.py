"""What llama.cpp computes from token ids with the weights of a GGUF, on the CPU: logits, hidden states, embeddings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import MissingExtraError, PassingError, QuantkitError
from quantkit.llamacpp import session
from quantkit.scratch import folder_in_memory, scratch_folder

LOGITS_SECONDS = 1800.0
"""A child that computes logits is stopped after these."""


def logits(
    model: Path,
    tokens: Sequence[int],
    *,
    adapter: Path | None = None,
    n_threads: int | None = None,
    vocabulary: bool = True,
    by_default: bool = False,
) -> npt.NDArray[np.float32]:
    """Logits (n_tokens, n_vocab), float32, of one sequence of token ids, on the CPU, with a float32 KV cache.

    `adapter`: the GGUF of a LoRA adapter to apply. llama.cpp also validates every tensor's data on the way. Without
    `vocabulary` it takes the number of tokens from the key NAME.vocab_size and does not load them. `by_default`: one
    token must go through llama.cpp's default settings too. Raises QuantkitError when llama.cpp refuses the file
    or runs longer than LOGITS_SECONDS.
    """
    if not tokens:
        raise ValueError("tokens is empty; pass at least one token id")
    with scratch_folder(folder_in_memory(len(tokens) << 21)) as folder:
        out = folder / "logits"
        request = {
            "task": "logits",
            "model": str(model.absolute()),
            "tokens": [int(token) for token in tokens],
            "vocabulary": vocabulary,
            "out": str(out),
        }
        more = {"n_threads": n_threads, "adapter": str(adapter.absolute()) if adapter else None}
        _run_in_both({**request, **more, "by_default": by_default}, model, timeout=LOGITS_SECONDS)
        return np.fromfile(out, np.float32).reshape(len(tokens), -1)


def hidden_states(
    model: Path, tokens: Sequence[int], *, by_default: bool = False, timeout: float = 1800.0
) -> npt.NDArray[np.float32]:
    """The last hidden states (n_tokens, hidden), float32, of one sequence of token ids in an encoder, on the CPU.

    Source: llama_get_embeddings with the pooling NONE. `by_default`: as in `logits`. Raises QuantkitError as
    `logits` does.
    """
    return embeddings(model, [tokens], pooling="none", by_default=by_default, timeout=timeout)[0]


def embeddings(
    model: Path,
    sequences: Sequence[Sequence[int]],
    *,
    pooling: str | None = None,
    n_threads: int | None = None,
    by_default: bool = False,
    timeout: float = 1800.0,
) -> list[npt.NDArray[np.float32]]:
    """The embeddings of sequences of token ids, on the CPU, float32: (1, hidden) each.

    `pooling`: none, mean, cls, last or rank; None takes the file's own. With `none` a sequence has a row for each
    token, with `rank` one row of scores. `by_default`: as in `logits`. Raises QuantkitError as `logits` does,
    also without a pooling.
    """
    with scratch_folder(folder_in_memory(sum(map(len, sequences)) << 13)) as folder:
        out = folder / "embeddings"
        request = {
            "task": "embeddings",
            "model": str(model.absolute()),
            "sequences": [[int(token) for token in tokens] for tokens in sequences],
            "pooling": pooling,
            "n_threads": n_threads,
            "by_default": by_default,
            "out": str(out),
        }
        shapes = _run_in_both(request, model, timeout=timeout)
        values = np.fromfile(out, np.float32)
    ends = np.cumsum([rows * columns for rows, columns in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(values, ends), shapes, strict=True)]


def _run_in_both(request: Mapping[str, Any], model: Path, *, timeout: float) -> Any:
    """The result of a request whose child evaluates exactly and then, after a message of progress, by default.

    Raises QuantkitError as `logits` does.
    """
    exact: list[int] = []
    try:
        return session.run_child(request, model, timeout=timeout, progress=lambda done, _of: exact.append(done))
    except (MissingExtraError, PassingError):
        raise
    except QuantkitError as error:
        if not exact:
            raise
        raise QuantkitError(
            f"{error}; this is with llama.cpp's default settings (flash attention, a cache of f16), which"
            " `quantkit run` has too; without them it runs the file"
        ) from error
