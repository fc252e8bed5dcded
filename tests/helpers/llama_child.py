"""One child process of llama.cpp for the short questions of all tests: it loads one model after the other.

quantkit starts a child for each question. A child takes 0.2 s of CPU to start, and the suite asks a thousand questions.
"""

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.llamacpp import session as sessions
from quantkit.llamacpp.session import LlamaSession, Progress

_TASKS = ("vocab_tokens", "text_tokens", "logits")
"""The tasks that load a file and free it again."""
start_child, start_children = sessions.run_child, sessions.children_ready


class SharedChild:
    """`run_child` with one process, replaced after an error; a changed environment gets a process of its own."""

    def __init__(self) -> None:
        self._session: LlamaSession | None = None
        self._lock = threading.Lock()
        self._environment = self._read_environment()

    @staticmethod
    def _read_environment() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COLUMNS"))}

    def run(
        self, request: Mapping[str, Any], model: Path, *, timeout: float | None = None, progress: Progress | None = None
    ) -> Any:
        sessions.require_llama_cpp()
        changed = self._read_environment() != self._environment
        if changed or request["task"] not in _TASKS or not model.is_file():
            return start_child(request, model, timeout=timeout, progress=progress)
        # several files are checked at once, and each must get its own answers
        with self._lock:
            return self._ask(request, model, timeout=timeout, progress=progress)

    def _ask(self, request: Mapping[str, Any], model: Path, *, timeout: float | None, progress: Progress | None) -> Any:
        if self._session is None or not self._session.alive:
            self.close()
            self._session = LlamaSession(model)
        try:
            self._session.answer_about(model)
            return self._session.ask(request, timeout=timeout, progress=progress)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None
