"""The process in which llama.cpp runs: `python -m quantkit.measure.llama_child`, started by llama_runtime only.

A bad file can abort llama.cpp, so it never shares a process with the caller. One request comes as a JSON line on stdin;
answers go to stdout as JSON lines: any number of {"progress": [done, of, value]}, then {"result": ...} or
{"error": "..."}. Only llama.cpp's errors are let through to stderr. When stdin closes the caller is gone, so this
leaves too.
"""

import contextlib
import ctypes
import importlib
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt


def _bindings() -> Any:
    """llama_cpp.llama_cpp without the package around it, whose chat formats take longer to load than a small model."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is not None and spec.submodule_search_locations:
        package = ModuleType("llama_cpp")
        package.__path__ = spec.submodule_search_locations
        sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


llama = _bindings()

_ERROR, _CONTINUED = 4, 5
_F32 = 0


class Failed(Exception):
    """What to tell the caller; llama.cpp's own reason is in stderr."""


@contextlib.contextmanager
def _model(path: str, **params: Any) -> Iterator[Any]:
    settings = llama.llama_model_default_params()
    for name, value in params.items():
        setattr(settings, name, value)
    model = llama.llama_model_load_from_file(os.fsencode(path), settings)
    if not model:
        raise Failed("could not load the file")
    try:
        yield model
    finally:
        llama.llama_model_free(model)


@contextlib.contextmanager
def _context(model: Any, n_threads: int | None, **params: Any) -> Iterator[Any]:
    settings = llama.llama_context_default_params()
    settings.n_threads = settings.n_threads_batch = n_threads or len(os.sched_getaffinity(0))
    for name, value in params.items():
        setattr(settings, name, value)
    context = llama.llama_init_from_model(model, settings)
    if not context:
        raise Failed("could not make a context")
    try:
        yield context
    finally:
        llama.llama_free(context)


def _tokens(vocab: Any, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
    data = text.encode("utf-8")
    room = len(data) + 8
    ids = (llama.llama_token * room)()
    count = llama.llama_tokenize(vocab, data, len(data), ids, room, add_special, parse_special)
    if count < 0:
        raise Failed(f"could not tokenize the text (it asks for {-count} tokens of room)")
    return list(ids[:count])


def _decode(context: Any, tokens: list[int], first_scored: int, n_vocab: int) -> npt.NDArray[np.float32]:
    """Logits of tokens[first_scored:], (n, n_vocab) float32: a view of llama.cpp's buffer until the next call."""
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    try:
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i >= first_scored
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        status = llama.llama_decode(context, batch)
    finally:
        llama.llama_batch_free(batch)
    if status:
        raise Failed(f"could not evaluate {len(tokens)} tokens (llama_decode returned {status})")
    return np.ctypeslib.as_array(llama.llama_get_logits(context), (len(tokens) - first_scored, n_vocab))


def tokenize(request: dict[str, Any]) -> list[list[int]]:
    with _model(request["model"], vocab_only=True) as model:
        vocab = llama.llama_model_get_vocab(model)
        return [_tokens(vocab, text, add_special=False, parse_special=True) for text in request["texts"]]


def logits(request: dict[str, Any]) -> None:
    """Writes (n_tokens, n_vocab) to request["out"]; the KV cache is float32 and flash attention off, for exactness."""
    tokens = request["tokens"]
    with (
        _model(request["model"], n_gpu_layers=0, check_tensors=True, use_extra_bufts=False) as model,
        _context(
            model,
            request["n_threads"],
            n_ctx=len(tokens),
            n_batch=len(tokens),
            n_ubatch=len(tokens),
            flash_attn_type=0,
            type_k=_F32,
            type_v=_F32,
        ) as context,
    ):
        n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        if max(tokens) >= n_vocab:
            raise Failed(f"was asked for token {max(tokens)} of a vocabulary of {n_vocab}")
        found = _decode(context, tokens, 0, n_vocab)
        np.lib.format.open_memmap(request["out"], "w+", np.float32, found.shape)[:] = found


def perplexity(request: dict[str, Any]) -> dict[str, Any]:
    n_ctx = request["n_ctx"]
    first = n_ctx // 2
    with (
        _model(request["model"]) as model,
        _context(model, request["n_threads"], n_ctx=n_ctx, n_batch=n_ctx, n_ubatch=min(n_ctx, 512)) as context,
    ):
        vocab = llama.llama_model_get_vocab(model)
        n_vocab = llama.llama_vocab_n_tokens(vocab)
        tokens = _tokens(vocab, request["text"], add_special=True, parse_special=False)
        if len(tokens) < 2 * n_ctx:
            raise Failed(f"needs at least {2 * n_ctx} tokens of text for n_ctx {n_ctx}, and was given {len(tokens)}")
        n_chunks = len(tokens) // n_ctx
        if request["n_chunks"] is not None:
            n_chunks = min(n_chunks, request["n_chunks"])
        bos = llama.llama_vocab_bos(vocab) if llama.llama_vocab_get_add_bos(vocab) else None
        losses: list[npt.NDArray[np.float64]] = []
        for chunk in range(n_chunks):
            window = tokens[chunk * n_ctx : (chunk + 1) * n_ctx]
            targets = window[first + 1 :]
            if bos is not None:
                window[0] = bos
            losses.append(_losses(_decode(context, window, first, n_vocab)[:-1], targets))
            _answer({"progress": [chunk + 1, n_chunks, float(np.exp(np.mean(losses)))]})
    return {"losses": np.concatenate(losses).tolist(), "n_chunks": n_chunks}


def _losses(rows: npt.NDArray[np.float32], targets: list[int]) -> npt.NDArray[np.float64]:
    """-log p of each target under its row of logits: exponentials in float32, summed in float64, as llama.cpp does."""
    top = rows.max(axis=1)
    total = np.exp(rows - top[:, None]).sum(axis=1, dtype=np.float64)
    return np.asarray(np.log(total) - (rows[np.arange(len(targets)), targets] - top), np.float64)


def _answer(message: dict[str, Any]) -> None:
    os.write(_answers, json.dumps(message).encode() + b"\n")


def _log(level: int, text: bytes, _data: ctypes.c_void_p) -> None:
    global _last_level
    _last_level = level if level != _CONTINUED else _last_level
    if _last_level == _ERROR:
        os.write(2, text)


_log_callback = llama.llama_log_callback(_log)


def _leave_with_the_caller() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_the_caller, daemon=True).start()
    llama.llama_log_set(_log_callback, ctypes.c_void_p(0))
    llama.llama_backend_init()
    try:
        _answer(
            {"result": {"tokenize": tokenize, "logits": logits, "perplexity": perplexity}[request["task"]](request)}
        )
    except Failed as error:
        _answer({"error": str(error)})
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    _last_level = 0
    _answers = os.dup(1)
    os.dup2(2, 1)
    main()
