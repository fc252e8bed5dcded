"""Tasks of the child process for memory and speed: a model loaded as llama.cpp's own programs load it, and timed."""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from quantkit.llamacpp.calls import CONTINUED, ERROR, Failed, context, llama, load
from quantkit.llamacpp.devices import add_rpc_servers, offload_devices
from quantkit.system import memory

_SMALL_BATCH = 32
_PSS_INTERVAL, _PSS_SHARE = 0.02, 0.1


class Loaded:
    """A model that is loaded, evaluated once, and stays in memory while the caller inspects the process."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """The lines of llama.cpp's log about its buffers, and the memory of the process in bytes."""
        add_rpc_servers(request["rpc"])
        before = memory.resident()
        with _peak_pss() as pss, _log_lines() as lines:
            model = self._stack.enter_context(load_model(request))
            running = self._stack.enter_context(_context(model, request))
            vocab = llama.llama_model_get_vocab(model)
            n_ctx = llama.llama_n_ctx(running)
            for count in (1, min(_SMALL_BATCH, n_ctx - 1, request["n_batch"])):
                tokens = _some_tokens(vocab, count)
                if _has_both(model):
                    _encode(running, tokens)
                _evaluate(running, tokens)
        return {
            "log": lines,
            "devices": {device["name"]: device["pci"] for device in offload_devices()},
            "n_ctx": n_ctx,
            "rss_before": before,
            "peak_rss": memory.peak(),
            "peak_pss": max(pss, default=None),
        }


class Bench:
    """llama-bench's two tests over a model that stays loaded. Source: tools/llama-bench/llama-bench.cpp."""

    def __init__(self) -> None:
        self._stack, self._test = ExitStack(), ExitStack()
        self._model: Any = None
        self._running: Any = None
        self._request: dict[str, Any] = {}
        self._batches: list[list[int]] = []
        self._evaluate: Callable[[Any, list[int]], None] = _evaluate

    def open(self, request: dict[str, Any]) -> int:
        """Load the model in place of an earlier one; returns the number of devices to offload to."""
        self._test.close()
        self._stack.close()
        add_rpc_servers(request["rpc"])
        self._request = request
        self._model = self._stack.enter_context(load_model(request))
        return len(offload_devices())

    def begin(self, request: dict[str, Any]) -> None:
        """A context for a test over so many tokens, and its warm-up: the whole prompt, or one token of a generation.

        A prompt is evaluated in batches, a generation token by token: the tokens are any, for all take the same time.
        T5's encoder reads the prompt, and its decoder generates.
        """
        self._test.close()
        encodes = _has_both(self._model)
        self._evaluate = _encode if encodes and request["prompt"] else _evaluate
        n_batch = self._request["n_ubatch" if encodes else "n_batch"] if request["prompt"] else 1
        new_context = _context(self._model, {**self._request, "n_ctx": request["tokens"]})
        self._running = self._test.enter_context(new_context)
        tokens = _some_tokens(llama.llama_model_get_vocab(self._model), request["tokens"])
        self._batches = [tokens[first : first + n_batch] for first in range(0, len(tokens), n_batch)]
        if encodes:
            _encode(self._running, self._batches[0])
        for batch in self._batches if request["prompt"] else self._batches[:1]:
            self._evaluate(self._running, batch)

    def run(self, request: dict[str, Any]) -> float:
        """Seconds of one run of the test begun, from an empty cache."""
        llama.llama_memory_clear(llama.llama_get_memory(self._running), False)
        started = time.perf_counter()
        for batch in self._batches:
            self._evaluate(self._running, batch)
        return time.perf_counter() - started


def load_model(request: dict[str, Any], *, load_mtp: bool = False) -> Any:
    """The model of a request, placed as it says; a context manager. `load_mtp`: with its layers for later tokens."""
    return load(
        request["model"],
        n_gpu_layers=request["gpu_layers"],
        cpu_moe=request["cpu_moe"],
        split=request["tensor_split"],
        load_mtp=load_mtp,
    )


def _context(model: Any, request: dict[str, Any]) -> Any:
    return context(
        model,
        request["n_threads"],
        n_ctx=request["n_ctx"],
        n_batch=request["n_batch"],
        n_ubatch=request["n_ubatch"],
        type_k=request["kv_type"],
        type_v=request["kv_type"],
        offload_kqv=request["kv_on_gpu"],
        flash_attn_type=request["flash_attn"],
        # as llama-cli and the server have it: layers that slide keep their window only
        swa_full=False,
    )


def _some_tokens(vocab: Any, count: int) -> list[int]:
    n_vocab = llama.llama_vocab_n_tokens(vocab)
    tokens = [int(token) for token in np.random.default_rng(count).integers(0, n_vocab, count)]
    if llama.llama_vocab_get_add_bos(vocab):
        tokens[0] = llama.llama_vocab_bos(vocab)
    return tokens


def _evaluate(running: Any, tokens: list[int]) -> None:
    """After what the cache holds; logits of the last one only."""
    ids = (llama.llama_token * len(tokens))(*tokens)
    status = llama.llama_decode(running, llama.llama_batch_get_one(ids, len(tokens)))
    if status:
        raise Failed(f"could not evaluate {len(tokens)} tokens (llama_decode returned {status})")
    llama.llama_synchronize(running)


def _has_both(model: Any) -> bool:
    """Whether the model has an encoder and a decoder; llama.cpp aborts if the decoder runs first."""
    return bool(llama.llama_model_has_encoder(model) and llama.llama_model_has_decoder(model))


def _encode(running: Any, tokens: list[int]) -> None:
    """What the decoder attends to. At most n_ubatch tokens: an encoder reads a text in one batch."""
    ids = (llama.llama_token * len(tokens))(*tokens)
    status = llama.llama_encode(running, llama.llama_batch_get_one(ids, len(tokens)))
    if status:
        raise Failed(f"could not evaluate {len(tokens)} tokens (llama_encode returned {status})")
    llama.llama_synchronize(running)


@contextmanager
def _log_lines() -> Iterator[list[str]]:
    """The lines of llama.cpp's log about buffers and layers; errors go to stderr."""
    lines: list[str] = []
    level = [0]

    def log(kind: int, text: bytes, _data: ctypes.c_void_p) -> None:
        level[0] = kind if kind != CONTINUED else level[0]
        if level[0] == ERROR:
            os.write(2, text)
        elif b" buffer size = " in text or b": offloaded " in text:
            lines.append(text.decode("utf-8", "replace"))

    callback = llama.llama_log_callback(log)
    before, data = llama.llama_log_callback(), ctypes.c_void_p()
    llama.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield lines
    finally:
        llama.llama_log_set(before, data)


@contextmanager
def _peak_pss() -> Iterator[list[int]]:
    """Samples of this process's proportional set size in bytes, the last one at the end; empty where there are none.

    A sample walks the page tables, so sampling takes at most a tenth of the time.
    """
    samples: list[int] = []
    stop = threading.Event()

    def sample() -> float:
        started = time.monotonic()
        size = memory.proportional()
        if size is not None:
            samples.append(size)
        return time.monotonic() - started

    def watch() -> None:
        took = 0.0
        while not stop.wait(max(_PSS_INTERVAL, took / _PSS_SHARE)):
            took = sample()

    sample()
    if not samples:
        yield samples
        return
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield samples
        sample()
    finally:
        stop.set()
        watcher.join()
