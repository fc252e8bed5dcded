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
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.llamacpp.calls import CONTINUED, ERROR, Failed, context, decode, llama, load, set_adapter, tokenize
from quantkit.llamacpp.devices import devices
from quantkit.llamacpp.embedding import embeddings, special_tokens
from quantkit.llamacpp.generation import Talk
from quantkit.llamacpp.images import Images
from quantkit.llamacpp.inputs import Grams, Inputs
from quantkit.llamacpp.loading import Bench, Loaded
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

    The KV cache is float32 and flash attention off, for exactness.
    """
    tokens = request["tokens"]
    with (
        load(request["model"], n_gpu_layers=0, check_tensors=True, use_extra_bufts=False) as model,
        context(
            model,
            request["n_threads"],
            n_ctx=len(tokens),
            n_batch=len(tokens),
            n_ubatch=len(tokens),
            flash_attn_type=0,
            type_k=_F32,
            type_v=_F32,
        ) as running,
    ):
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


def load_projector(request: dict[str, Any]) -> None:
    """Load a projector for a text model, and free both."""
    with ExitStack() as stack, load(request["model"], n_gpu_layers=0) as model:
        Images(model, {**request, "gpu_layers": 0, "marker": "<image>"}, _log_callback, stack)


def file_features(request: dict[str, Any]) -> list[list[int]]:
    """Writes the vectors of an image or a sound, float32, to request["out"], chunk after chunk; the shape of each."""
    with (
        ExitStack() as stack,
        load(request["model"], n_gpu_layers=0) as model,
    ):
        images = Images(model, {**request, "gpu_layers": 0, "marker": "<image>"}, _log_callback, stack)
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


def main() -> None:
    """Answer requests until stdin closes."""
    # the caller is in the same process group, and handles the interrupt
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    llama.llama_log_set(_log_callback, ctypes.c_void_p(0))
    llama.llama_backend_init()
    model, bench, inputs, grams = Open(), Bench(), Inputs(), Grams()
    talk = Talk(
        lambda: not requests.empty(), lambda piece: _answer({"progress": [piece.decode("latin-1")]}), _log_callback
    )
    tasks = {
        "vocab_tokens": vocab_tokens,
        "text_tokens": text_tokens,
        "logits": logits,
        "special_tokens": special_tokens,
        "embeddings": embeddings,
        "open": model.open,
        "window": model.window,
        "inputs_open": inputs.open,
        "inputs_window": inputs.window,
        "inputs_save": inputs.save,
        "grams_open": grams.open,
        "grams_window": grams.window,
        "grams_save": grams.save,
        "devices": devices,
        "load": Loaded().load,
        "bench_open": bench.open,
        "bench_begin": bench.begin,
        "bench_run": bench.run,
        "talk_open": talk.open,
        "talk_tokenize": talk.tokenize,
        "talk_prepare": talk.prepare,
        "talk": talk.generate,
        "talk_follow": talk.follow,
        "file_features": file_features,
        "load_projector": load_projector,
    }
    while True:
        request = json.loads(requests.get())
        if request["task"] == "stop":
            # the generation has already ended
            _answer({"stopped": True})
            continue
        try:
            _answer({"result": tasks[request["task"]](request)})
        except Failed as error:
            _answer({"error": str(error)})


if __name__ == "__main__":
    _last_level = 0
    _answers = os.dup(1)
    os.dup2(2, 1)
    main()
