"""A llama.cpp context with the tokens that its KV cache holds: prefixes are kept, the rest is evaluated."""

import ctypes
from typing import Any

from quantkit.llamacpp.calls import Failed, llama


class CachedContext:
    """A llama_context for one sequence. `tokens`: the ids in its KV cache, in order."""

    def __init__(self, model: Any, running: Any) -> None:
        """`model`: the llama_model of the context `running`."""
        self.running = running
        self.tokens: list[int] = []
        self._window = int(llama.llama_model_n_swa(model))

    def keep(self, count: int) -> bool:
        """Remove all but the first `count` tokens; False if that is not possible, and then the cache is empty.

        A recurrent state holds no earlier state, and layers with a sliding window keep only the window.
        """
        memory = llama.llama_get_memory(self.running)
        complete = count >= len(self.tokens) or has_window(memory, self._window, count)
        if complete and llama.llama_memory_seq_rm(memory, 0, count, -1):
            del self.tokens[count:]
            return True
        self.clear()
        return False

    def keep_prefix(self, prompt: list[int]) -> int:
        """Keep the tokens that begin `prompt`, except its last one; returns their number."""
        pairs = enumerate(zip(self.tokens, prompt, strict=False))
        n_common = next((at for at, (a, b) in pairs if a != b), min(len(self.tokens), len(prompt)))
        n_common = min(n_common, len(prompt) - 1)
        return n_common if self.keep(n_common) else 0

    def clear(self) -> None:
        """Remove all tokens."""
        llama.llama_memory_clear(llama.llama_get_memory(self.running), True)
        self.tokens = []

    def evaluate(self, tokens: list[int], *, all_logits: bool = False) -> None:
        """Evaluate tokens after those in the cache; logits are those of the last one, or of all. Raises Failed."""
        ids = (llama.llama_token * len(tokens))(*tokens)
        batch = llama.llama_batch_get_one(ids, len(tokens))
        rows = (ctypes.c_int8 * len(tokens))(*[1] * len(tokens))
        if all_logits:
            batch.logits = rows
        status = llama.llama_decode(self.running, batch)
        if status:
            raise Failed(f"could not evaluate {len(tokens)} tokens (llama_decode returned {status})")
        self.tokens += tokens


def has_window(memory: Any, window: int, position: int) -> bool:
    """Whether all layers still hold what a token at `position` attends to; `window` 0: no layer slides."""
    first = int(llama.llama_memory_seq_pos_min(memory, 0)) if window and position else 0
    return first <= max(position - window, 0)
