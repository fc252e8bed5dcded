"""Chat with a GGUF file: its own chat template, llama.cpp, the answer piece by piece."""

import codecs
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf import GGMLQuantizationType

from quantkit.chat import render_contained
from quantkit.chat.channels import answer_reader
from quantkit.errors import QuantkitError, TemplateError, UnsupportedError
from quantkit.gguf.projector_file import hears, is_projector, only_hears
from quantkit.gguf.reader import read_header
from quantkit.gguf.vocabulary import TEMPLATE_KEY, special_tokens
from quantkit.llamacpp.projector_session import require_libmtmd
from quantkit.llamacpp.prompt_cache import fingerprint
from quantkit.llamacpp.sampling import Sampling
from quantkit.llamacpp.session import LlamaSession, llama_cpp_version

if TYPE_CHECKING:
    from quantkit.llamacpp.draft_choice import Draft

CONTEXT = 4096
"""Default context in tokens; the model's, if that is smaller."""


@dataclass(frozen=True)
class Loading:
    """How llama.cpp loads the model. `gpu_layers`: layers on the GPU, None for all. 0 threads are all cores.

    `cpu_moe`: the first layers, whose experts stay on the CPU. `kv_type`: type of the KV cache. `rpc`: servers,
    "host:port". `tensor_split`: the share of the layers of each device; empty for shares of their free memory.
    `kv_on_gpu`: the KV cache of a layer is where the layer is. `draft`: what proposes tokens (speculative decoding).
    """

    gpu_layers: int | None = None
    cpu_moe: int = 0
    kv_type: GGMLQuantizationType = GGMLQuantizationType.F16
    n_threads: int | None = None
    rpc: Sequence[str] = ()
    tensor_split: Sequence[float] = ()
    kv_on_gpu: bool = True
    draft: "Draft | None" = None

    def request(self) -> dict[str, Any]:
        """The part of a request to the child process."""
        return {
            "gpu_layers": -1 if self.gpu_layers is None else self.gpu_layers,
            "cpu_moe": self.cpu_moe,
            "kv_type": int(self.kv_type),
            "n_threads": self.n_threads,
            "rpc": list(self.rpc),
            "tensor_split": list(self.tensor_split),
            "kv_on_gpu": self.kv_on_gpu,
            "draft": self.draft.request() if self.draft else None,
        }


@dataclass(frozen=True)
class Answer:
    """An answer. `reason`: why it ended: "end" (of generation), "length", "context" (full), "asked" (stopped).

    `accepted`: tokens of the `drafted` ones that are part of the answer.
    """

    text: str
    reason: str
    prompt_tokens: int
    prompt_seconds: float
    tokens: int
    seconds: float
    drafted: int = 0
    accepted: int = 0


@dataclass
class Conversation:
    """A model that stays loaded in a child process, and the messages so far.

    `template` None: the prompt is the last message as it is. `images` and `sounds`: files before the first message,
    which llama.cpp sees and hears through the projector `mmproj`. `prompt_cache`: the file that keeps the first
    prompt for later starts. `warn`: receives why that file is ignored or not written.
    """

    model: Path
    template: str | None
    n_ctx: int
    sampling: Sampling
    bos: str | None = None
    eos: str | None = None
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    mmproj: Path | None = None
    images: tuple[Path, ...] = ()
    sounds: tuple[Path, ...] = ()
    prompt_cache: Path | None = None
    warn: Callable[[str], object] = lambda _: None
    _marker: str = field(default_factory=lambda: f"<__media_{random.getrandbits(64):016x}__>")
    _session: LlamaSession | None = None

    def show(self, images: Sequence[Path], mmproj: Path, *, sounds: Sequence[Path] = ()) -> None:
        """Put images and sounds before the first message; call it before `open`.

        Raises:
            MissingExtraError: llama-cpp-python was built without libmtmd.
            QuantkitError: an image or a sound is not a file, or the projector does not take it.
        """
        require_libmtmd()
        header = read_header(mmproj)
        for paths, kind, option in ((images, "image", "--image"), (sounds, "sound", "--audio")):
            for path in paths:
                if not path.is_file():
                    reason = "is not a file" if path.exists() else "was not found"
                    raise QuantkitError(f"the {kind} {path} {reason}; correct {option}")
        if images and only_hears(header):
            raise QuantkitError(
                f"{mmproj.name} is the projector of a model that only hears; pass a sound with --audio, not --image"
            )
        if sounds and not hears(header):
            raise QuantkitError(
                f"{mmproj.name} is the projector of a model that does not hear; remove --audio, or pass another"
                " projector with --mmproj FILE"
            )
        self.images, self.sounds, self.mmproj = tuple(images), tuple(sounds), mmproj

    def open(self, loading: "Loading") -> None:
        """Load the model. Raises as `LlamaSession.ask`."""
        self._session = LlamaSession(self.model)
        request = {"model": str(self.model), "n_ctx": self.n_ctx, **loading.request()}
        if self._files:
            request |= {"mmproj": str(self.mmproj), "marker": self._marker}
        if self.prompt_cache:
            identity = {
                "model": fingerprint(self.model),
                "llama.cpp": llama_cpp_version(),
                "type of KV cache": loading.kv_type.name,
            }
            request |= {"prompt_cache": str(self.prompt_cache.absolute()), "identity": identity}
        opened = self._session.ask({"task": "talk_open", **request})
        self.n_ctx = opened["n_ctx"]
        if opened["note"]:
            self.warn(opened["note"])

    def say(self, text: str, *, most: int, show: Callable[[str], object]) -> Answer:
        """The model's answer, of at most `most` tokens; `show` gets it piece by piece.

        Raises QuantkitError if the conversation does not fit in the context, TemplateError if the template fails; then
        the text is not part of the conversation.
        """
        assert self._session is not None
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt = self._rendered(messages)
        tokens, count = self._tokenized(prompt)
        if count >= self.n_ctx:
            raise QuantkitError(
                f"the conversation has {count} tokens, more than the context of {self.n_ctx}; shorten"
                " the prompt, clear the conversation, or use a larger --ctx"
            )
        reader, decoder = answer_reader(self.template, prompt), codecs.getincrementaldecoder("utf-8")("replace")
        parts: list[str] = []

        def receive(piece: str) -> None:
            parts.append(reader.feed(decoder.decode(piece.encode("latin-1"))))
            show(parts[-1])

        request = {"task": "talk", "tokens": tokens, "max_tokens": most, "special": reader.reads_control}
        result = self._session.ask({**request, "sampling": self.sampling.document()}, progress=receive)
        if note := result.pop("note"):
            self.warn(note)
        parts.append(reader.feed(decoder.decode(b"", True)) + reader.finish())
        show(parts[-1])
        self.messages = [*messages, reader.message]
        return Answer("".join(parts), **result)

    def follow(self, text: str, out: Path, *, answer: Sequence[int] | None, most: int) -> list[int]:
        """The tokens of an answer to a first message about the images; the messages so far are not part of the prompt.

        `answer`: the tokens; None for the most likely ones, at most `most` with the end of the answer. `out` gets the
        logits before each token, (n_tokens, n_vocab) float32.

        Raises QuantkitError if prompt and answer do not fit in the context.
        """
        assert self._session is not None
        _, count = self._prompt([{"role": "user", "content": text}])
        if count + most > self.n_ctx:
            raise QuantkitError(
                f"the question about an image has {count} tokens, but {self.model.name} has a context of {self.n_ctx}"
            )
        request = {"answer": None if answer is None else list(answer), "max_tokens": most, "out": str(out)}
        return [int(token) for token in self._session.ask({"task": "talk_follow", **request})]

    @property
    def alive(self) -> bool:
        """Whether the child process is running."""
        return self._session is not None and self._session.alive

    def stop(self) -> None:
        """Stop the current answer; from another thread or a signal handler."""
        if self._session is not None:
            self._session.stop()

    def clear(self) -> None:
        """Remove all messages, images and sounds."""
        self.messages, self.images, self.sounds = [], (), ()

    @property
    def _files(self) -> tuple[Path, ...]:
        return (*self.images, *self.sounds)

    def _prompt(self, messages: Sequence[Mapping[str, str]]) -> tuple[list[int] | None, int]:
        """The token ids of the prompt, or None for one with files, which the process keeps; the number of tokens."""
        return self._tokenized(self._rendered(messages))

    def _tokenized(self, text: str) -> tuple[list[int] | None, int]:
        """See `_prompt`; `text`: the prompt."""
        assert self._session is not None
        begun = bool(self.bos) and text.startswith(self.bos or "")
        request = {"text": text, "add_special": not begun}
        if self._files:
            files = {
                kind: [str(path.absolute()) for path in paths]
                for kind, paths in (("images", self.images), ("sounds", self.sounds))
            }
            return None, int(self._session.ask({"task": "talk_prepare", **request, **files}))
        tokens = [int(token) for token in self._session.ask({"task": "talk_tokenize", **request})]
        return tokens, len(tokens)

    def _rendered(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text of the prompt, with a marker for each image and sound before the first message."""
        markers = self._marker * len(self._files)
        if self.template is None:
            return markers + messages[-1]["content"]
        system = [{"role": "system", "content": self.system}] if self.system else []
        first = {**messages[0], "content": markers + messages[0]["content"]}
        ends = {"bos_token": self.bos, "eos_token": self.eos}
        whole = [*system, first, *messages[1:]]
        if not markers:
            return render_contained(self.template, whole, **ends)
        try:
            if self._marker in (text := render_contained(self.template, whole, **ends)):
                return text
        except TemplateError:
            pass
        # the templates of some models that see take a content in parts only
        parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in whole]
        return render_contained(self.template, parts, **ends)

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

    Raises CheckpointError if the file is not a GGUF, UnsupportedError if its model gives no text.
    """
    header = read_header(model)
    if header.is_encoder:
        raise UnsupportedError(
            f"{model.name} is an encoder, which gives embeddings and no text; quantkit measure compares its embeddings"
        )
    if header.answers_a_text:
        raise UnsupportedError(
            f"{model.name} has an encoder and a decoder, and quantkit runs decoders only; use llama.cpp's own programs"
        )
    if is_projector(header):
        raise UnsupportedError(
            f"{model.name} is a projector, not a model; pass the text model as MODEL, and this file with --mmproj"
        )
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
