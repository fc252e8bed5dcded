"""llama.cpp's low-level API as the child process uses it: load, make a context, tokenize, decode.

Imported in that process only (see child.py).
"""

import contextlib
import ctypes
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.machine import cores


def _bindings() -> Any:
    """llama_cpp.llama_cpp without its package, whose chat formats take longer to load than a small model.

    The server needs the package, and has imported it before. Without llama-cpp-python: xllamacpp's library.
    """
    if "llama_cpp" in sys.modules:
        return importlib.import_module("llama_cpp.llama_cpp")
    spec = importlib.util.find_spec("llama_cpp")
    if spec is not None and spec.submodule_search_locations:
        package = ModuleType("llama_cpp")
        package.__path__ = spec.submodule_search_locations
        sys.modules["llama_cpp"] = package
    if spec is None:
        return importlib.import_module("quantkit.llamacpp.bindings")
    return importlib.import_module("llama_cpp.llama_cpp")


llama = _bindings()


ERROR, CONTINUED = 4, 5
"""Levels of llama.cpp's log: an error, and the continuation of a line."""


class Failed(Exception):
    """The message for the caller; llama.cpp's own reason is in stderr."""


class _BufferOverride(ctypes.Structure):
    """struct llama_model_tensor_buft_override: tensors whose names match a pattern go into buffers of a type."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


class _KeyOverride(ctypes.Structure):
    """struct llama_model_kv_override: the value that a key of the header gets; an empty key ends a list."""

    _fields_ = (("tag", ctypes.c_int), ("key", ctypes.c_char * 128), ("text", ctypes.c_int64 * 16))


_TEXT = 3


def without_vocabulary() -> Any:
    """The overrides for a file whose vocabulary is not read: its size is the header's NAME.vocab_size."""
    overrides = (_KeyOverride * 2)()
    overrides[0].tag, overrides[0].key = _TEXT, b"tokenizer.ggml.model"
    ctypes.memmove(overrides[0].text, b"no_vocab", len(b"no_vocab"))
    return overrides


def experts_on_cpu(layers: int) -> Any:
    """The overrides of llama.cpp's --n-cpu-moe (common.h), with an empty one at the end."""
    buffer_type = llama._lib.ggml_backend_cpu_buffer_type
    buffer_type.restype = ctypes.c_void_p
    overrides = (_BufferOverride * (layers + 1))()
    for layer in range(layers):
        pattern = rb"blk\.%d\.ffn_(up|down|gate|gate_up)_(ch|)exps" % layer
        overrides[layer] = _BufferOverride(pattern, buffer_type())
    return overrides


def proportions(split: Sequence[float]) -> Any:
    """The parameter tensor_split: the share of the layers of each device."""
    return (ctypes.c_float * llama.llama_max_devices())(*split)


@contextlib.contextmanager
def load(
    path: str, *, cpu_moe: int = 0, split: Sequence[float] = (), vocabulary: bool = True, **params: Any
) -> Iterator[Any]:
    """A llama_model with these of llama_model_params, freed at the end. Raises Failed.

    `cpu_moe`: the experts of the first layers stay on the CPU. `split`: the share of the layers of each device; empty
    for shares of their free memory. Without its `vocabulary` a model evaluates token ids but does not tokenize.
    """
    settings = llama.llama_model_default_params()
    shares = proportions(split)
    if split:
        settings.tensor_split = shares
    overrides = experts_on_cpu(cpu_moe)
    if cpu_moe:
        settings.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
    keys = without_vocabulary()
    if not vocabulary:
        settings.kv_overrides = ctypes.cast(keys, type(settings.kv_overrides))
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
def context(model: Any, n_threads: int | None, **params: Any) -> Iterator[Any]:
    """A llama_context with these of llama_context_params, freed at the end. Raises Failed."""
    settings = llama.llama_context_default_params()
    settings.n_threads = settings.n_threads_batch = n_threads or cores()
    for name, value in params.items():
        setattr(settings, name, value)
    running = llama.llama_init_from_model(model, settings)
    if not running:
        raise Failed("could not make a context")
    try:
        yield running
    finally:
        llama.llama_free(running)


def set_adapter(running: Any, model: Any, path: str) -> None:
    """Apply the LoRA adapter of a GGUF file to a context; it is freed with the model. Raises Failed."""
    adapter = llama.llama_adapter_lora_init(model, os.fsencode(path))
    if not adapter:
        raise Failed(f"could not load the adapter {path}")
    adapters = (llama.llama_adapter_lora_p_ctypes * 1)(adapter)
    if llama.llama_set_adapters_lora(running, adapters, 1, (ctypes.c_float * 1)(1.0)):
        raise Failed(f"could not apply the adapter {path}")


def tokenize(vocab: Any, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
    """Token ids of a text by a llama_vocab. Source: llama_tokenize. Raises Failed."""
    data = text.encode("utf-8")
    room = len(data) + 8
    ids = (llama.llama_token * room)()
    count = llama.llama_tokenize(vocab, data, len(data), ids, room, add_special, parse_special)
    if count < 0:
        raise Failed(f"could not tokenize the text (it needs a buffer of {-count} tokens)")
    return list(ids[:count])


def decode(context: Any, tokens: list[int], first_scored: int, n_vocab: int) -> npt.NDArray[np.float32]:
    """Logits of tokens[first_scored:], (n, n_vocab) float32: a view of llama.cpp's buffer until the next call."""
    evaluate(context, tokens, first_scored)
    return np.ctypeslib.as_array(llama.llama_get_logits(context), (len(tokens) - first_scored, n_vocab))


def evaluate_by_default(model: Any, token: int, n_threads: int | None, **params: Any) -> None:
    """Evaluate one token in a context as `quantkit run` makes it: flash attention auto, a cache of f16.

    Some graphs abort with flash attention only, and of PLM's only that of several tokens: llama.cpp builds it for a
    batch of two before it evaluates the one. `params` of llama_context_params come on top. Raises Failed, also for
    values that are not finite.
    """
    with context(model, n_threads, n_ctx=2, n_batch=2, n_ubatch=2, swa_full=False, **params) as running:
        evaluate(running, [token], 0)
        read, width = llama.llama_get_logits, llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        if params.get("embeddings"):
            read, width = llama.llama_get_embeddings, llama.llama_model_n_embd_out(model)
        if not np.isfinite(np.ctypeslib.as_array(read(running), (width,))).all():
            raise Failed("gave values that are not finite")


def evaluate(context: Any, tokens: list[int], first_scored: int) -> None:
    """Evaluate tokens from an empty memory; logits are kept from `first_scored` on. Raises Failed.

    T5 has an encoder, which reads them first; its decoder, if there is one, then gets the same tokens.
    """
    model = llama.llama_get_model(context)
    encodes = llama.llama_model_has_encoder(model)
    decodes = not encodes or llama.llama_model_has_decoder(model)
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    try:
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i >= first_scored
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        status = llama.llama_encode(context, batch) if encodes else 0
        if decodes and not status:
            status = llama.llama_decode(context, batch)
    finally:
        llama.llama_batch_free(batch)
    if status:
        name = "llama_decode" if decodes else "llama_encode"
        raise Failed(f"could not evaluate {len(tokens)} tokens ({name} returned {status})")
