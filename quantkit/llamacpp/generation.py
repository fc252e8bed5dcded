"""Chat tasks of the child process: the model stays loaded, and the tokens so far stay in its KV cache."""

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.llamacpp.cached import CachedContext
from quantkit.llamacpp.calls import context, llama, tokenize
from quantkit.llamacpp.devices import add_rpc_servers
from quantkit.llamacpp.drafting import Drafter, open_drafter
from quantkit.llamacpp.images import Images
from quantkit.llamacpp.loading import load_model
from quantkit.llamacpp.saved_prompt import SavedPrompt

_BATCH = 512
_PENALTY_LAST = 64
_USUAL_PIECE = 256


class Talk:
    """A chat. `stop_requested`: whether the caller stops the answer. `send`: receives its bytes, piece by piece."""

    def __init__(self, stop_requested: Callable[[], bool], send: Callable[[bytes], None], log: Any = None) -> None:
        """`log`: the callback that receives llama.cpp's lines."""
        self._stop_requested, self._send, self._log = stop_requested, send, log
        self._stack = ExitStack()
        self._context: CachedContext
        self._vocab: Any = None
        self._images: Images | None = None
        self._drafter: Drafter | None = None
        self._saved: SavedPrompt | None = None
        # tokens of a prompt with images, which the KV cache holds before those of `_context`
        self._before = 0
        self._n_ctx = 0
        self._drafted = self._accepted = 0

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Load the model and make a context; returns what a conversation needs of the vocabulary."""
        add_rpc_servers(request["rpc"])
        draft = request.get("draft")
        own_head = draft is not None and draft["mtp"] and draft["model"] is None
        model = self._stack.enter_context(load_model(request, load_mtp=own_head))
        running = self._stack.enter_context(
            context(
                model,
                request["n_threads"],
                n_ctx=request["n_ctx"],
                n_batch=_BATCH,
                n_ubatch=_BATCH,
                type_k=request["kv_type"],
                type_v=request["kv_type"],
                offload_kqv=request["kv_on_gpu"],
                # as the plan counts it: layers that slide keep their window only
                swa_full=False,
                # a recurrent state can go back by the tokens that were drafted in vain
                n_rs_seq=draft["count"] if draft else 0,
            )
        )
        self._context = CachedContext(model, running)
        self._vocab = llama.llama_model_get_vocab(model)
        self._n_ctx = llama.llama_n_ctx(running)
        if request.get("mmproj"):
            self._images = Images(model, request, self._log, self._stack)
        if draft:
            self._drafter = open_drafter(running, model, {**request, "n_batch": _BATCH}, self._stack)
        note = None
        if request.get("prompt_cache"):
            self._saved = SavedPrompt(Path(request["prompt_cache"]), request["identity"])
            note = self._saved.load(self._context, self._n_ctx)
        return {"n_ctx": self._n_ctx, "note": note}

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

        The part of the prompt that is in the KV cache is not evaluated again. request["special"]: send the text of
        control tokens too.
        """
        count = self._drafted = self._accepted = 0
        note = None
        began = time.perf_counter()
        if request["tokens"] is None:
            assert self._images is not None
            self._context.tokens = []
            length, fresh = self._before, self._images.evaluate(self._context.running)
        else:
            if self._before and self._images is not None:
                self._images.forget()
                self._before = 0
            length = len(request["tokens"])
            fresh, note = self._evaluate_prompt(request["tokens"])
        prompted = time.perf_counter()
        reason = "length"
        most = min(request["max_tokens"], self._n_ctx - length)
        with ExitStack() as stack:
            for token in self._stream(self._sampler(request["sampling"], stack), most):
                if llama.llama_vocab_is_eog(self._vocab, token):
                    reason = "end"
                    break
                count += 1
                self._send(self._piece(token, special=request.get("special", False)))
                if self._stop_requested():
                    reason = "asked"
                    break
                if length + count >= self._n_ctx:
                    reason = "context"
                    break
        return {
            "reason": reason,
            "prompt_tokens": fresh,
            "prompt_seconds": prompted - began,
            "tokens": count,
            "seconds": time.perf_counter() - prompted,
            "drafted": self._drafted,
            "accepted": self._accepted,
            "note": note,
        }

    def follow(self, request: dict[str, Any]) -> list[int]:
        """Evaluate the prepared prompt with images, then an answer token by token; the tokens of the answer.

        request["answer"]: the tokens; None for the most likely ones, up to an end-of-generation token. request["out"]
        gets the logits before each token, (n_tokens, n_vocab) float32.
        """
        assert self._images is not None
        self._images.forget()
        self._images.evaluate(self._context.running)
        self._context.tokens = []
        reference_answer, n_vocab = request["answer"], llama.llama_vocab_n_tokens(self._vocab)
        most = request["max_tokens"] if reference_answer is None else len(reference_answer)
        tokens: list[int] = []
        with Path(request["out"]).open("wb") as file:
            while len(tokens) < most:
                logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(self._context.running, -1), (n_vocab,))
                logits.tofile(file)
                tokens.append(int(logits.argmax()) if reference_answer is None else reference_answer[len(tokens)])
                if reference_answer is None and llama.llama_vocab_is_eog(self._vocab, tokens[-1]):
                    break
                if len(tokens) < most:
                    self._evaluate(tokens[-1:])
        return tokens

    def _stream(self, sampler: Any, most: int) -> Iterator[int]:
        """Up to `most` sampled tokens. Each is evaluated, with drafts of the next ones, when the next is wanted.

        A draft is accepted if the model's own sampler chooses it, so drafts change the time only.
        """
        token = self._sample(sampler, -1)
        while most > 0:
            most -= 1
            yield token
            if not most:
                return
            drafts = self._drafts(token, most - 1)
            start = len(self._context.tokens)
            self._evaluate([token, *drafts], all_logits=bool(drafts))
            token = self._sample(sampler, 0 if drafts else -1)
            accepted = 0
            while accepted < len(drafts) and token == drafts[accepted]:
                accepted += 1
                most -= 1
                self._accepted += 1
                yield token
                token = self._sample(sampler, accepted)
            if drafts:
                self._take_back(start + 1 + accepted)

    def _drafts(self, token: int, most: int) -> list[int]:
        """Up to `most` tokens that may follow `token`."""
        if self._drafter is None or self._before:
            return []
        drafts = self._drafter.propose([*self._context.tokens, token], min(self._drafter.count, most))
        n_vocab = llama.llama_vocab_n_tokens(self._vocab)
        known = next((at for at, draft in enumerate(drafts) if draft >= n_vocab), len(drafts))
        self._drafted += known
        return drafts[:known]

    def _take_back(self, count: int) -> None:
        """Keep the first `count` tokens of the KV cache; what it cannot keep is evaluated again."""
        assert self._drafter is not None
        tokens = self._context.tokens
        self._drafter.accept(count - len(tokens) or None)
        if not self._context.keep(count):
            self._evaluate_in_batches(tokens[:count])

    def _evaluate_prompt(self, prompt: list[int]) -> tuple[int, str | None]:
        """Evaluate the tokens of the prompt that are not in the cache, always the last one.

        Returns their number, and why the prompt cache could not be written.
        """
        n_cached = self._context.keep_prefix(prompt)
        note = None
        if self._saved is None:
            self._evaluate_in_batches(prompt[n_cached:])
        else:
            # the last token alone, so that a later start evaluates it in the same way
            self._evaluate_in_batches(prompt[n_cached:-1])
            note = self._saved.save(self._context) if n_cached < len(prompt) - 1 else None
            self._saved = None
            self._evaluate(prompt[-1:])
        if self._drafter is not None:
            self._drafter.begin(prompt)
        llama.llama_synchronize(self._context.running)
        return len(prompt) - n_cached, note

    def _evaluate_in_batches(self, tokens: list[int]) -> None:
        step = llama.llama_n_batch(self._context.running)
        for start in range(0, len(tokens), step):
            self._evaluate(tokens[start : start + step])

    def _evaluate(self, tokens: list[int], *, all_logits: bool = False) -> None:
        start = len(self._context.tokens)
        self._context.evaluate(tokens, all_logits=all_logits)
        if self._drafter is not None and not self._before:
            self._drafter.observe(tokens, start)

    def _sample(self, sampler: Any, row: int) -> int:
        return int(llama.llama_sampler_sample(sampler, self._context.running, row))

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

    def _piece(self, token: int, *, special: bool) -> bytes:
        """The bytes of a token; `special`: those of a control token too, which are empty else."""
        room = ctypes.create_string_buffer(_USUAL_PIECE)
        size = llama.llama_token_to_piece(self._vocab, token, room, len(room), 0, special)
        if size < 0:  # the size that the piece needs
            room = ctypes.create_string_buffer(-size)
            size = llama.llama_token_to_piece(self._vocab, token, room, len(room), 0, special)
        return room.raw[:size]
