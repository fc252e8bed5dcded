"""The prompt cache of a context in the child process: its state read from a file, and written to one."""

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import OutputError
from quantkit.llamacpp.cached import CachedContext
from quantkit.llamacpp.calls import llama
from quantkit.llamacpp.prompt_cache import UnusableCache, read, write

_SEQUENCE = 0


class SavedPrompt:
    """A file of one prompt. `identity`: the model and settings that it belongs to."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        """`path`: the file, which need not exist."""
        self._path, self._identity = path, identity

    def load(self, context: CachedContext, n_ctx: int) -> str | None:
        """Put the saved prompt into an empty context; why it is ignored, or None."""
        try:
            saved = read(self._path, self._identity)
            if saved is None:
                return None
            tokens, state = saved
            if len(tokens) >= n_ctx:
                raise UnusableCache(f"has {len(tokens)} tokens, more than the context of {n_ctx}")
            buffer = (ctypes.c_uint8 * len(state)).from_buffer(state)
            if llama.llama_state_seq_set_data(context.running, buffer, len(state), _SEQUENCE) != len(state):
                context.clear()
                raise UnusableCache("does not fit the context")
        except UnusableCache as error:
            return f"the prompt cache {self._path} {error}; the prompt is evaluated and the file is overwritten"
        context.tokens = tokens
        return None

    def save(self, context: CachedContext) -> str | None:
        """Write the prompt that the context holds; why it could not be written, or None."""
        size = llama.llama_state_seq_get_size(context.running, _SEQUENCE)
        state = (ctypes.c_uint8 * size)()
        used = llama.llama_state_seq_get_data(context.running, state, size, _SEQUENCE)
        try:
            write(self._path, self._identity, context.tokens, memoryview(state)[:used])
        except OutputError as error:
            reason, _, _ = str(error).rpartition("; ")  # the next step is that of a command with -o
            return f"the prompt cache was not saved: {reason}; pass another file with --prompt-cache"
        return None
