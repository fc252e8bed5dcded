"""Talking to a GGUF file: its own chat template, real llama.cpp, the answer as it comes."""

import codecs
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.chat import render_contained
from quantkit.errors import QuantkitError
from quantkit.gguf.reader import GgufHeader, read_header
from quantkit.gguf.vocabulary import TEMPLATE_KEY, special_tokens
from quantkit.llamacpp.session import LlamaSession

CONTEXT = 4096
"""Tokens of context where none is asked, or the model's if that is less."""
_HINTS = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "penalty_repeat",
}


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the defaults are those of llama.cpp's programs. `seed` None: another every time."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None

    @classmethod
    def of(cls, header: GgufHeader, asked: Mapping[str, Any]) -> "Sampling":
        """What was asked, else what the file recommends (`general.sampling.*`), else the defaults."""
        hints = {name: header.value(f"general.sampling.{key}") for name, key in _HINTS.items()}
        hinted = {name: value for name, value in hints.items() if isinstance(value, int | float)}
        return cls(**{**hinted, **{name: value for name, value in asked.items() if value is not None}})

    def document(self) -> dict[str, Any]:
        seed = random.getrandbits(32) if self.seed is None else self.seed
        return {**vars(self), "top_k": int(self.top_k), "seed": seed}


@dataclass(frozen=True)
class Answer:
    """`reason` it ended: "end" (the model did), "length", "context" (it is full), "asked" (stopped)."""

    text: str
    reason: str
    prompt_tokens: int
    prompt_seconds: float
    tokens: int
    seconds: float


@dataclass
class Conversation:
    """A model that stays loaded in a process of its own, and what was said so far.

    `template` None: text goes in as it is, and only what was said last.
    """

    model: Path
    template: str | None
    n_ctx: int
    sampling: Sampling
    bos: str | None = None
    eos: str | None = None
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    _session: LlamaSession | None = None

    def open(self, *, gpu_layers: int | None, n_threads: int | None, rpc: Sequence[str] = ()) -> None:
        """Load the model, so many layers of it on the GPU (None: all). Raises QuantkitError as `LlamaSession.ask`."""
        self._session = LlamaSession(self.model)
        layers = -1 if gpu_layers is None else gpu_layers
        request = {"model": str(self.model), "n_ctx": self.n_ctx, "gpu_layers": layers, "n_threads": n_threads}
        self.n_ctx = self._session.ask({"task": "talk_open", **request, "rpc": list(rpc)})["n_ctx"]

    def say(self, text: str, *, most: int, show: Callable[[str], object]) -> Answer:
        """The model's answer, of at most `most` tokens; `show` gets it piece by piece.

        Raises QuantkitError when what was said does not fit in the context, TemplateError when the template fails; then
        the text is not part of the conversation.
        """
        assert self._session is not None
        said = [*self.messages, {"role": "user", "content": text}]
        tokens = self._tokens(said)
        if len(tokens) >= self.n_ctx:
            raise QuantkitError(
                f"what was said has {len(tokens)} tokens, and the context holds {self.n_ctx}: start anew, or give a"
                " larger --ctx"
            )
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        parts: list[str] = []

        def told(piece: str) -> None:
            part = decoder.decode(piece.encode("latin-1"))
            parts.append(part)
            show(part)

        request = {"task": "talk", "tokens": tokens, "max_tokens": most, "sampling": self.sampling.document()}
        found = self._session.ask(request, progress=told)
        last = decoder.decode(b"", True)
        show(last)
        answer = Answer("".join([*parts, last]), **found)
        self.messages = [*said, {"role": "assistant", "content": answer.text}]
        return answer

    @property
    def alive(self) -> bool:
        """Whether the process is there to answer."""
        return self._session is not None and self._session.alive

    def stop(self) -> None:
        """End the answer that is coming; from another thread or a signal's handler."""
        if self._session is not None:
            self._session.stop()

    def clear(self) -> None:
        """Forget what was said."""
        self.messages = []

    def _tokens(self, said: Sequence[Mapping[str, str]]) -> list[int]:
        assert self._session is not None
        text = said[-1]["content"]
        if self.template is not None:
            system = [{"role": "system", "content": self.system}] if self.system else []
            text = render_contained(self.template, [*system, *said], bos_token=self.bos, eos_token=self.eos)
        begun = bool(self.bos) and text.startswith(self.bos or "")
        request = {"task": "talk_tokenize", "text": text, "add_special": not begun}
        return [int(token) for token in self._session.ask(request)]

    def close(self) -> None:
        """End the process."""
        if self._session is not None:
            self._session.close()

    def __enter__(self) -> "Conversation":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def converse(
    model: Path, *, n_ctx: int | None, system: str | None, raw: bool, sampling: Mapping[str, Any]
) -> Conversation:
    """A conversation with a GGUF file, not yet open.

    `sampling`: fields of Sampling that override the file's; `raw`: without a chat template.

    Raises CheckpointError for what is no GGUF.
    """
    header = read_header(model)
    texts = {role: text for role, _, text in special_tokens(header.keys)}
    template = header.value(TEMPLATE_KEY)
    trained = header.value(f"{header.value('general.architecture')}.context_length")
    return Conversation(
        model,
        template if isinstance(template, str) and not raw else None,
        n_ctx or min(trained if isinstance(trained, int) else CONTEXT, CONTEXT),
        Sampling.of(header, sampling),
        texts.get("bos"),
        texts.get("eos"),
        system,
    )
