"""Chat tasks of the child process: the model stays loaded, and the tokens so far stay in its KV cache."""

import ctypes
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.llamacpp.calls import Failed, context, llama, tokenize
from quantkit.llamacpp.devices import add_rpc_servers
from quantkit.llamacpp.images import Images
from quantkit.llamacpp.loading import load_model

_BATCH = 512
_PENALTY_LAST = 64
_USUAL_PIECE = 256


class Talk:
    """A chat. `stop_requested`: whether the caller stops the answer. `send`: receives its bytes, piece by piece."""

    def __init__(self, stop_requested: Callable[[], bool], send: Callable[[bytes], None], log: Any = None) -> None:
        """`log`: the callback that receives llama.cpp's lines."""
        self._stop_requested, self._send, self._log = stop_requested, send, log
        self._stack = ExitStack()
        self._running: Any = None
        self._vocab: Any = None
        self._cached: list[int] = []
        self._images: Images | None = None
        # tokens of a prompt with images, which the KV cache holds before those of `_cached`
        self._before = 0
        self._n_ctx = 0

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Load the model and make a context; returns what a conversation needs of the vocabulary."""
        add_rpc_servers(request["rpc"])
        model = self._stack.enter_context(load_model(request))
        self._running = self._stack.enter_context(
            context(
                model,
                request["n_threads"],
                n_ctx=request["n_ctx"],
                n_batch=_BATCH,
                n_ubatch=_BATCH,
                type_k=request["kv_type"],
                type_v=request["kv_type"],
                offload_kqv=request["kv_on_gpu"],
            )
        )
        self._vocab = llama.llama_model_get_vocab(model)
        self._n_ctx = llama.llama_n_ctx(self._running)
        if request.get("mmproj"):
            self._images = Images(model, request, self._log, self._stack)
        return {"n_ctx": self._n_ctx}

    def tokenize(self, request: dict[str, Any]) -> list[int]:
        """Token ids of a text."""
        return tokenize(self._vocab, request["text"], add_special=request["add_special"], parse_special=True)

    def prepare(self, request: dict[str, Any]) -> int:
        """The number of tokens of a prompt with images, which `generate` takes next."""
        assert self._images is not None
        self._before = self._images.prepare(request)
        return self._before

    def generate(self, request: dict[str, Any]) -> dict[str, Any]:
        """Generate after the prompt's token ids, or after the prepared prompt, up to an end-of-generation token.

        The part of the prompt that is in the KV cache is not evaluated again.
        """
        count = 0
        began = time.perf_counter()
        if request["tokens"] is None:
            assert self._images is not None
            self._cached = []
            fresh = self._images.evaluate(self._running)
        else:
            if self._before and self._images is not None:
                self._images.forget()
                self._before = 0
            fresh = self._evaluate_prompt(request["tokens"])
        prompted = time.perf_counter()
        reason = "length"
        with ExitStack() as stack:
            sampler = self._sampler(request["sampling"], stack)
            while count < request["max_tokens"]:
                token = llama.llama_sampler_sample(sampler, self._running, -1)
                if llama.llama_vocab_is_eog(self._vocab, token):
                    reason = "end"
                    break
                count += 1
                self._send(self._piece(token))
                if self._stop_requested():
                    reason = "asked"
                    break
                if self._before + len(self._cached) + 1 >= self._n_ctx:
                    reason = "context"
                    break
                self._evaluate([token])
        return {
            "reason": reason,
            "prompt_tokens": fresh,
            "prompt_seconds": prompted - began,
            "tokens": count,
            "seconds": time.perf_counter() - prompted,
        }

    def follow(self, request: dict[str, Any]) -> list[int]:
        """Evaluate the prepared prompt with images, then an answer token by token; the tokens of the answer.

        request["answer"]: the tokens; None for the most likely ones, up to an end-of-generation token. request["out"]
        gets the logits before each token, (n_tokens, n_vocab) float32.
        """
        assert self._images is not None
        self._images.forget()
        self._images.evaluate(self._running)
        self._cached = []
        given, n_vocab = request["answer"], llama.llama_vocab_n_tokens(self._vocab)
        most = request["max_tokens"] if given is None else len(given)
        tokens: list[int] = []
        with Path(request["out"]).open("wb") as file:
            while len(tokens) < most:
                logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(self._running, -1), (n_vocab,))
                logits.tofile(file)
                tokens.append(int(logits.argmax()) if given is None else given[len(tokens)])
                if given is None and llama.llama_vocab_is_eog(self._vocab, tokens[-1]):
                    break
                if len(tokens) < most:
                    self._evaluate(tokens[-1:])
        return tokens

    def _evaluate_prompt(self, prompt: list[int]) -> int:
        """Evaluate the tokens of the prompt that are not in the cache, always the last one; returns their number."""
        pairs = enumerate(zip(self._cached, prompt, strict=False))
        same = next((at for at, (a, b) in pairs if a != b), min(len(self._cached), len(prompt)))
        same = min(same, len(prompt) - 1)
        memory = llama.llama_get_memory(self._running)
        if not llama.llama_memory_seq_rm(memory, 0, same, -1):
            llama.llama_memory_clear(memory, True)
            same = 0
        del self._cached[same:]
        step = llama.llama_n_batch(self._running)
        for start in range(same, len(prompt), step):
            self._evaluate(prompt[start : start + step])
        llama.llama_synchronize(self._running)
        return len(prompt) - same

    def _evaluate(self, tokens: list[int]) -> None:
        ids = (llama.llama_token * len(tokens))(*tokens)
        status = llama.llama_decode(self._running, llama.llama_batch_get_one(ids, len(tokens)))
        if status:
            raise Failed(f"could not evaluate {len(tokens)} tokens (llama_decode returned {status})")
        self._cached += tokens

    def _sampler(self, sampling: dict[str, Any], stack: ExitStack) -> Any:
        """llama.cpp's samplers in the order of llama.cpp's programs; greedy at temperature 0."""
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        stack.callback(llama.llama_sampler_free, chain)

        def add(sampler: Any) -> None:
            llama.llama_sampler_chain_add(chain, sampler)

        if sampling["repeat_penalty"] != 1:
            n_vocab = llama.llama_vocab_n_tokens(self._vocab)
            add(llama.llama_sampler_init_penalties(n_vocab, _PENALTY_LAST, sampling["repeat_penalty"], 0.0, 0.0))
        if sampling["temperature"] <= 0:
            add(llama.llama_sampler_init_greedy())
            return chain
        add(llama.llama_sampler_init_top_k(sampling["top_k"]))
        add(llama.llama_sampler_init_top_p(sampling["top_p"], 1))
        add(llama.llama_sampler_init_min_p(sampling["min_p"], 1))
        add(llama.llama_sampler_init_temp(sampling["temperature"]))
        add(llama.llama_sampler_init_dist(sampling["seed"] & 0xFFFFFFFF))
        return chain

    def _piece(self, token: int) -> bytes:
        room = ctypes.create_string_buffer(_USUAL_PIECE)
        size = llama.llama_token_to_piece(self._vocab, token, room, len(room), 0, False)
        if size < 0:  # the size that the piece needs
            room = ctypes.create_string_buffer(-size)
            size = llama.llama_token_to_piece(self._vocab, token, room, len(room), 0, False)
        return room.raw[:size]
