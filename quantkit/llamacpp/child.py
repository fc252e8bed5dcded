"""The process in which llama.cpp runs: `python -m quantkit.llamacpp.child`, started by session.py only.

A bad file can abort llama.cpp, so it never shares a process with the caller. Requests come as JSON lines on stdin, one
at a time. Answers go to stdout as JSON lines: for each request any number of {"progress": [done, of]}, then
{"result": ...} or {"error": "..."}. After an error the caller replaces this process. Only llama.cpp's errors go to
stderr. The process exits when stdin closes, because then the caller is gone.
"""

import ctypes
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from quantkit.llamacpp.calls import (
    CONTINUED,
    ERROR,
    Failed,
    context,
    decode,
    evaluate_by_default,
    llama,
    load,
    set_adapter,
    tokenize,
)
from quantkit.system import descriptors

_F32 = 0


def vocab_tokens(request: dict[str, Any]) -> list[list[int]]:
    """Token ids of each text, without BOS and EOS; special tokens in a text become their ids."""
    with load(request["model"], vocab_only=True) as model:
        vocab = llama.llama_model_get_vocab(model)
        return [tokenize(vocab, text, add_special=False, parse_special=True) for text in request["texts"]]


def text_tokens(request: dict[str, Any]) -> dict[str, Any]:
    """Tokens of a text to measure on: special tokens are added around it, and those spelled in it are not parsed."""
    with load(request["model"], vocab_only=True) as model:
        vocab = llama.llama_model_get_vocab(model)
        tokens = tokenize(vocab, request["text"], add_special=True, parse_special=False)
        adds_bos = llama.llama_vocab_get_add_bos(vocab)
        return {"tokens": tokens, "bos": llama.llama_vocab_bos(vocab) if adds_bos else None}


def logits(request: dict[str, Any]) -> None:
    """Writes (n_tokens, n_vocab) float32 to request["out"].

    The KV cache is float32 and flash attention off, for exactness; a model that attends to blocks of keys does so with
    flash attention only. With request["by_default"] a token is evaluated
    again as llama.cpp does by default, after a message of progress.
    """
    tokens = request["tokens"]
    with load(
        request["model"],
        vocabulary=request["vocabulary"],
        n_gpu_layers=0,
        check_tensors=True,
        use_extra_bufts=False,
    ) as model:
        _write_logits(model, request)
        if request["by_default"]:
            _say_half()
            evaluate_by_default(model, tokens[0], request["n_threads"])


def _write_logits(model: Any, request: dict[str, Any]) -> None:
    tokens = request["tokens"]
    with context(
        model,
        request["n_threads"],
        n_ctx=len(tokens),
        n_batch=len(tokens),
        n_ubatch=len(tokens),
        flash_attn_type=int(_attends_to_blocks(model)),
        type_k=_F32,
        type_v=_F32,
    ) as running:
        n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        if max(tokens) >= n_vocab:
            raise Failed(f"cannot evaluate token {max(tokens)}: the vocabulary has {n_vocab} tokens")
        if request.get("adapter"):
            set_adapter(running, model, request["adapter"])
        values = decode(running, tokens, 0, n_vocab)
        try:
            with Path(request["out"]).open("w+b") as file:
                # a full folder is an error here, not a bus error at the first store
                descriptors.reserve(file.fileno(), values.nbytes)
                np.memmap(file, np.float32, "r+", 0, values.shape)[:] = values
        except OSError as error:
            raise Failed(f"could not write its logits: {error.strerror}") from error


def _attends_to_blocks(model: Any) -> bool:
    """Whether an indexer chooses blocks of keys (MiniMax M3)."""
    arch = ctypes.create_string_buffer(256)
    llama.llama_model_meta_val_str(model, b"general.architecture", arch, len(arch))
    key = arch.value + b".attention.indexer.block_size"
    return bool(llama.llama_model_meta_val_str(model, key, arch, len(arch)) > 0)


def load_projector(request: dict[str, Any]) -> None:
    """Load a projector for a text model, and free both."""
    with ExitStack() as stack, load(request["model"], n_gpu_layers=0) as model:
        _of("images").Images(model, {**request, "gpu_layers": 0, "marker": "<image>"}, _log_callback, stack)


def file_features(request: dict[str, Any]) -> list[list[int]]:
    """Writes the vectors of an image or a sound, float32, to request["out"], chunk after chunk; the shape of each."""
    with (
        ExitStack() as stack,
        load(request["model"], n_gpu_layers=0) as model,
    ):
        images = _of("images").Images(model, {**request, "gpu_layers": 0, "marker": "<image>"}, _log_callback, stack)
        files = {"images": request["images"], "sounds": request["sounds"]}
        images.prepare({"text": "<image>", **files, "add_special": False})
        vectors = images.features()
    np.concatenate([values.reshape(-1) for values in vectors]).tofile(request["out"])
    return [list(values.shape) for values in vectors]


class Open:
    """A model that stays loaded, for windows of `n_ctx` tokens."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._context: Any = None
        self.n_ctx = self.n_vocab = 0

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Loads as llama-perplexity does by default."""
        self.n_ctx = request["n_ctx"]
        model = self._stack.enter_context(load(request["model"]))
        self._context = self._stack.enter_context(
            context(model, request["n_threads"], n_ctx=self.n_ctx, n_batch=self.n_ctx, n_ubatch=min(self.n_ctx, 512))
        )
        self.n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        return {"n_vocab": self.n_vocab, "n_params": llama.llama_model_n_params(model)}

    def window(self, request: dict[str, Any]) -> None:
        """Fills the file request["out"] with the logits after tokens first .. n - 2: (n - 1 - first, n_vocab) float32.

        The logits after the last token are computed and dropped, as in llama-perplexity: rounding depends on shapes.
        """
        tokens, first = request["tokens"], request["first"]
        values = decode(self._context, tokens, first, self.n_vocab)[:-1]
        out = np.memmap(request["out"], np.float32, "r+", 0, values.shape)
        out[:] = values


def _answer(message: dict[str, Any]) -> None:
    os.write(_answers, json.dumps(message).encode() + b"\n")


def _say_half() -> None:
    _answer({"progress": [1, 2]})


def _log(level: int, text: bytes, _data: ctypes.c_void_p) -> None:
    global _last_level
    _last_level = level if level != CONTINUED else _last_level
    if _last_level == ERROR:
        os.write(2, text)


_log_callback = llama.llama_log_callback(_log)


def _listen(requests: "queue.Queue[str]") -> None:
    for line in sys.stdin:
        requests.put(line)
    os._exit(1)


class _Tasks:
    """What answers requests. The objects keep a model loaded from one request to the next."""

    def __init__(self, stop_requested: Callable[[], bool]) -> None:
        """`stop_requested`: whether the caller stops a generation."""
        self._stop_requested = stop_requested

    def answer(self, request: dict[str, Any]) -> Any:
        """The result of a request. Raises Failed, and KeyError for an unknown task."""
        return self._functions[request["task"]]()(request)

    @cached_property
    def _functions(self) -> dict[str, Callable[[], Callable[[dict[str, Any]], Any]]]:
        return {
            "vocab_tokens": lambda: vocab_tokens,
            "text_tokens": lambda: text_tokens,
            "logits": lambda: logits,
            "special_tokens": lambda: _of("embedding").special_tokens,
            "embeddings": lambda: partial(_of("embedding").embeddings, between=_say_half),
            "open": lambda: self._model.open,
            "window": lambda: self._model.window,
            "inputs_open": lambda: self._inputs.open,
            "inputs_window": lambda: self._inputs.window,
            "inputs_save": lambda: self._inputs.save,
            "grams_open": lambda: self._grams.open,
            "grams_window": lambda: self._grams.window,
            "grams_save": lambda: self._grams.save,
            "devices": lambda: _of("devices").devices,
            "load": lambda: self._loaded.load,
            "bench_open": lambda: self._bench.open,
            "bench_begin": lambda: self._bench.begin,
            "bench_run": lambda: self._bench.run,
            "talk_open": lambda: self._talk.open,
            "talk_tokenize": lambda: self._talk.tokenize,
            "talk_prepare": lambda: self._talk.prepare,
            "talk": lambda: self._talk.generate,
            "talk_follow": lambda: self._talk.follow,
            "file_features": lambda: file_features,
            "load_projector": lambda: load_projector,
        }

    @cached_property
    def _model(self) -> Open:
        return Open()

    @cached_property
    def _inputs(self) -> Any:
        return _of("inputs").Inputs()

    @cached_property
    def _grams(self) -> Any:
        return _of("inputs").Grams()

    @cached_property
    def _loaded(self) -> Any:
        return _of("loading").Loaded()

    @cached_property
    def _bench(self) -> Any:
        return _of("loading").Bench()

    @cached_property
    def _talk(self) -> Any:
        def send(piece: bytes) -> None:
            _answer({"progress": [piece.decode("latin-1")]})

        return _of("generation").Talk(self._stop_requested, send, _log_callback)


def _of(name: str) -> ModuleType:
    """A module of this room, imported by the first task that needs it: most children only check a file."""
    return import_module(f"quantkit.llamacpp.{name}")


def main() -> None:
    """Answer requests until stdin closes."""
    # the caller is in the same process group, and handles the interrupt
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    llama.llama_log_set(_log_callback, ctypes.c_void_p(0))
    llama.llama_backend_init()
    tasks = _Tasks(lambda: not requests.empty())
    while True:
        request = json.loads(requests.get())
        if request["task"] == "stop":
            # the generation has already ended
            _answer({"stopped": True})
            continue
        try:
            _answer({"result": tasks.answer(request)})
        except Failed as error:
            _answer({"error": str(error)})


if __name__ == "__main__":
    _last_level = 0
    _answers = os.dup(1)
    os.dup2(2, 1)
    main()
