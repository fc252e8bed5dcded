"""Tasks of the child process for encoders: token ids with special tokens, and embeddings.

Source: examples/embedding/embedding.cpp, src/llama-context.cpp (llama_context::encode).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.llamacpp.calls import Failed, context, evaluate, evaluate_by_default, llama, load, tokenize

_POOLING = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
_UNSPECIFIED = -1


def special_tokens(request: dict[str, Any]) -> list[list[int]]:
    """Token ids of each text with the special tokens that the vocabulary adds."""
    with load(request["model"], vocab_only=True) as model:
        vocab = llama.llama_model_get_vocab(model)
        return [tokenize(vocab, text, add_special=True, parse_special=True) for text in request["texts"]]


def embeddings(request: dict[str, Any], between: Callable[[], None]) -> list[tuple[int, int]]:
    """Writes float32 rows to request["out"], sequence after sequence; returns the shape of each sequence's rows.

    With request["by_default"] the first token is evaluated again as llama.cpp does by default, after a message
    of progress, which `between` sends.
    """
    with load(request["model"], n_gpu_layers=0, check_tensors=True, use_extra_bufts=False) as model:
        shapes = _write_embeddings(model, request)
        if request["by_default"]:
            between()
            token, none = request["sequences"][0][0], _POOLING["none"]
            evaluate_by_default(model, token, request["n_threads"], embeddings=True, pooling_type=none)
        return shapes


def _write_embeddings(model: Any, request: dict[str, Any]) -> list[tuple[int, int]]:
    sequences = request["sequences"]
    longest = max(map(len, sequences))
    stated = request["pooling"]
    with context(
        model,
        request["n_threads"],
        n_ctx=longest,
        n_batch=longest,
        n_ubatch=longest,
        flash_attn_type=0,
        embeddings=True,
        pooling_type=_UNSPECIFIED if stated is None else _POOLING[stated],
    ) as running:
        pooling = llama.llama_pooling_type(running)
        if stated is None and pooling == _POOLING["none"]:
            raise Failed("cannot give one embedding: the file states no pooling, so --pooling mean or cls is needed")
        trained = llama.llama_model_n_ctx_train(model)
        if longest > trained:
            raise Failed(f"cannot embed {longest} tokens: the model has {trained} positions")
        n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        shapes = []
        try:
            with Path(request["out"]).open("wb") as file:
                for tokens in sequences:
                    if not tokens or max(tokens) >= n_vocab:
                        raise Failed(f"cannot evaluate {tokens[:4]}: the vocabulary has {n_vocab} tokens")
                    rows = _rows(running, model, tokens, pooling)
                    file.write(np.ascontiguousarray(rows, np.float32).data)
                    shapes.append(rows.shape)
        except OSError as error:
            raise Failed(f"could not write its embeddings: {error.strerror}") from error
    return shapes


def _rows(running: Any, model: Any, tokens: list[int], pooling: int) -> npt.NDArray[np.float32]:
    """The embedding of a sequence, (1, n), or of its tokens, (len(tokens), n): a view until the next call."""
    evaluate(running, tokens, 0)
    width = llama.llama_model_n_embd_out(model)
    if pooling == _POOLING["none"]:
        return np.ctypeslib.as_array(llama.llama_get_embeddings(running), (len(tokens), width))
    if pooling == _POOLING["rank"]:
        width = llama.llama_model_n_cls_out(model)
    return np.ctypeslib.as_array(llama.llama_get_embeddings_seq(running, 0), (1, width))
