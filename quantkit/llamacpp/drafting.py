"""Speculative decoding: a draft model or a layer for later tokens (MTP) proposes tokens that the model then checks.

Source: common/speculative.cpp of llama.cpp. The model evaluates all proposed tokens in one batch; those that it would
have sampled itself are accepted. In the child process only (see child.py).
"""

import ctypes
from contextlib import ExitStack
from typing import Any

from quantkit.llamacpp.cached import CachedContext
from quantkit.llamacpp.calls import Failed, context, llama, load

MTP = 1
"""LLAMA_CONTEXT_TYPE_MTP."""
_DECODE, _NO_SPLIT = 1, 0
# functions of src/llama-ext.h, which have C++ names: llama_get_embeddings_nextn and so on
_SET_HIDDEN = "_Z26llama_set_embeddings_nextnP13llama_contextbb"
_HIDDEN = "_Z26llama_get_embeddings_nextnP13llama_context"
_HIDDEN_OF = "_Z30llama_get_embeddings_nextn_ithP13llama_contexti"


class Drafter:
    """Proposes the tokens that follow. `count`: how many at most at a time."""

    count: int

    def begin(self, prompt: list[int]) -> None:
        """An answer to `prompt` begins."""

    def observe(self, tokens: list[int], start: int) -> None:
        """The model has evaluated `tokens` at the positions from `start` on."""

    def accept(self, rows: int | None) -> None:
        """Of the tokens observed last, `[:rows]` belong to the text."""

    def propose(self, tokens: list[int], count: int) -> list[int]:
        """Up to `count` tokens that follow `tokens`, of which the model has evaluated all but the last."""
        raise NotImplementedError


def open_drafter(target: Any, model: Any, request: dict[str, Any], stack: ExitStack) -> Drafter:
    """The drafter of a request for the context `target` of `model`. Raises Failed."""
    settings = request["draft"]
    if settings["mtp"]:
        has_head = settings["model"] is None
        return MtpHead(target, model if has_head else _load(settings, stack, load_mtp=True), request, stack)
    return DraftModel(_load(settings, stack), request, stack)


def _load(settings: dict[str, Any], stack: ExitStack, **options: Any) -> Any:
    # all of the file is on one device, which the plan has chosen
    placement = (
        {"n_gpu_layers": 0} if settings["gpu"] is None else {"split_mode": _NO_SPLIT, "main_gpu": settings["gpu"]}
    )
    return stack.enter_context(load(settings["model"], **placement, **options))


def _greedy(stack: ExitStack) -> Any:
    sampler = llama.llama_sampler_init_greedy()
    stack.callback(llama.llama_sampler_free, sampler)
    return sampler


def _context(model: Any, request: dict[str, Any], stack: ExitStack, **options: Any) -> Any:
    settings = {
        "n_ctx": request["n_ctx"],
        "n_batch": request["n_batch"],
        "n_ubatch": request["n_batch"],
        "type_k": request["kv_type"],
        "type_v": request["kv_type"],
        "offload_kqv": request["kv_on_gpu"],
        "swa_full": False,
    }
    return stack.enter_context(context(model, request["n_threads"], **settings, **options))


class DraftModel(Drafter):
    """A smaller model with the same vocabulary, which generates greedily."""

    def __init__(self, model: Any, request: dict[str, Any], stack: ExitStack) -> None:
        """`request`: that of `talk_open`."""
        self.count = request["draft"]["count"]
        running = _context(model, request, stack, n_rs_seq=self.count)
        self._cached, self._greedy = CachedContext(model, running), _greedy(stack)
        self._n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self._n_batch = request["n_batch"]

    def begin(self, prompt: list[int]) -> None:
        """See Drafter; the draft evaluates the prompt too."""
        if max(prompt) < self._n_vocab:
            self._evaluate(prompt)

    def propose(self, tokens: list[int], count: int) -> list[int]:
        """See Drafter; none after a token that the draft's vocabulary lacks."""
        if count < 1 or max(tokens) >= self._n_vocab:
            return []
        self._evaluate(tokens)
        drafts = [llama.llama_sampler_sample(self._greedy, self._cached.running, -1)]
        while len(drafts) < count:
            self._cached.evaluate(drafts[-1:])
            drafts.append(llama.llama_sampler_sample(self._greedy, self._cached.running, -1))
        return drafts

    def _evaluate(self, tokens: list[int]) -> None:
        uncached = tokens[self._cached.keep_prefix(tokens) :]
        for start in range(0, len(uncached), self._n_batch):
            self._cached.evaluate(uncached[start : start + self._n_batch])


class MtpHead(Drafter):
    """The layer of a model that predicts the token after the next, from the last hidden state and the next token.

    The row of hidden states at position p - 1 goes with the token at p. Only the first of several such layers is used.
    """

    def __init__(self, target: Any, model: Any, request: dict[str, Any], stack: ExitStack) -> None:
        """`target`: the context whose tokens it predicts; `model`: the llama_model that has the layer."""
        if llama.llama_model_n_layer_nextn(model) < 1:
            raise Failed("found no layer for later tokens (MTP) in the file")
        self.count = request["draft"]["count"]
        self._target, self._n_embd = target, int(llama.llama_model_n_embd_out(model))
        self._running = _context(model, request, stack, ctx_type=MTP, ctx_other=target)
        self._greedy = _greedy(stack)
        self._batch = llama.llama_batch_ext_init(self._running)
        stack.callback(llama.llama_batch_ext_free, self._batch)
        _function(_SET_HIDDEN, None, ctypes.c_bool, ctypes.c_bool)(target, True, False)
        _function(_SET_HIDDEN, None, ctypes.c_bool, ctypes.c_bool)(self._running, True, True)
        self._hidden = _function(_HIDDEN, ctypes.POINTER(ctypes.c_float))
        self._hidden_of = _function(_HIDDEN_OF, ctypes.POINTER(ctypes.c_float), ctypes.c_int32)
        # hidden states of the tokens observed last, and the position of the first of them
        self._rows: list[Any] = []
        self._start = 0
        self._row = ctypes.c_float * self._n_embd
        self._put_state = (llama.llama_batch_ext_set_embd_state, llama.llama_batch_ext_set_embd_token)

    def observe(self, tokens: list[int], start: int) -> None:
        """See Drafter; the layer evaluates the tokens too."""
        before = start - 1 - self._start
        first = self._rows[before] if 0 <= before < len(self._rows) else self._row()
        hidden = self._hidden(self._target)
        row = ctypes.sizeof(self._row)
        address = ctypes.addressof(hidden.contents)
        self._rows = [
            self._row.from_buffer_copy(ctypes.string_at(address + at * row, row)) for at in range(len(tokens))
        ]
        self._start = start
        self._evaluate(tokens, start, [first, *self._rows[:-1]])

    def accept(self, rows: int | None) -> None:
        """See Drafter."""
        self._rows = self._rows[:rows]

    def propose(self, tokens: list[int], count: int) -> list[int]:
        """See Drafter."""
        state = self._rows[-1] if self._rows else self._row()
        drafts: list[int] = []
        start = len(tokens) - 1
        while len(drafts) < count:
            self._evaluate([(tokens[-1:] + drafts)[-1]], start + len(drafts), [state], output=True)
            state = self._row.from_buffer_copy(
                ctypes.string_at(self._hidden_of(self._running, 0), ctypes.sizeof(self._row))
            )
            drafts.append(llama.llama_sampler_sample(self._greedy, self._running, -1))
        return drafts

    def _evaluate(self, tokens: list[int], start: int, states: list[Any], *, output: bool = False) -> None:
        """Evaluate tokens from position `start` on, which replaces those that were there."""
        llama.llama_memory_seq_rm(llama.llama_get_memory(self._running), 0, start, -1)
        llama.llama_batch_ext_clear(self._batch)
        for at, (token, state) in enumerate(zip(tokens, states, strict=True)):
            number = llama.llama_batch_ext_add_token(self._batch, 0, token)
            position = llama.llama_pos(start + at)
            llama.llama_batch_ext_set_pos(self._batch, number, ctypes.byref(position))
            data = ctypes.cast(state, ctypes.POINTER(ctypes.c_float))
            row = llama.llama_embd(data, 1, self._n_embd)
            # older builds take the state as an embedding beside the token's id
            if not any(put(self._batch, number, row) for put in self._put_state):
                raise Failed("takes no hidden state for its MTP layer in this build; run without --draft")
            llama.llama_batch_ext_set_output_logits(self._batch, number, output)
        status = llama.llama_process(self._running, _DECODE, self._batch)
        if status:
            raise Failed(f"could not evaluate {len(tokens)} tokens by the MTP layer (llama_process returned {status})")


def _function(name: str, result: Any, *arguments: Any) -> Any:
    """A function that takes a context first. Raises Failed if this build of llama.cpp does not export it."""
    try:
        function = getattr(llama._lib, name)
    except AttributeError:
        raise Failed("does not export its functions for MTP in this build; run without --draft mtp") from None
    function.restype, function.argtypes = result, (ctypes.c_void_p, *arguments)
    return function
