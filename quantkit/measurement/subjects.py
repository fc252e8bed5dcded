"""The models that can be measured: GGUF files and folders of Hugging Face, AWQ or GPTQ weights, with their engines."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from quantkit.checkpoint import Checkpoint
from quantkit.checkpoint.not_checkpoint import output_folder
from quantkit.errors import CheckpointError, MeasureError, TokenizerError, UnsupportedError
from quantkit.families import token_roles
from quantkit.gguf.model_file import model_files
from quantkit.gguf.reader import read_header, shard_paths
from quantkit.inspection import Description, inspect_source
from quantkit.llamacpp.token_ids import text_tokens
from quantkit.measurement.folder_engine import FolderEngine, open_folder
from quantkit.measurement.gguf_engine import GgufEngine
from quantkit.texts import tokens
from quantkit.texts.evaluation import Text
from quantkit.texts.windows import Windows, cut_windows
from quantkit.tokenizer import load_vocabulary
from quantkit.tokenizer.files import read as read_tokenizer

_UNUSED = 5
"""llama.cpp's token type of unused rows."""


@dataclass(frozen=True)
class Subject:
    """A model to be measured. `path`: the file or folder; `label`: its type in short (q4_0, awq, bf16)."""

    name: str
    label: str
    path: Path
    engine: GgufEngine | FolderEngine
    description: Description

    @property
    def kind(self) -> str:
        """ "gguf", "hf", or the name of a format of quantized folders."""
        return "gguf" if isinstance(self.engine, GgufEngine) else self.engine.kind

    @property
    def notes(self) -> tuple[str, ...]:
        """What was changed or left out when the model was opened."""
        if isinstance(self.engine, GgufEngine):
            return ()
        return tuple(f"{self.name}: {note}" for note in self.engine.opened.notes)

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The weight files."""
        if isinstance(self.engine, GgufEngine):
            return tuple(shard_paths(self.path))
        return tuple(self.path / file.name for file in self.description.files)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the names, sizes and modification times of the weight files and config.json.

        Raises ReadError: a weight file was cut since it was opened.
        """
        digest = hashlib.sha256()
        beside = () if self.kind == "gguf" else (self.path / "config.json",)
        for file in (*self.files, *beside):
            stat = file.stat()
            digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        if isinstance(self.engine, FolderEngine) and isinstance(self.engine.opened, Checkpoint):
            self.engine.opened.require_complete()
        return digest.hexdigest()

    @cached_property
    def vocabulary(self) -> list[bytes | None] | None:
        """The text of each token, None for an unused one; None if the tokenizer cannot be written for llama.cpp."""
        if isinstance(self.engine, GgufEngine):
            header = self.engine.header
            texts = [_bytes(text) for text in header.value("tokenizer.ggml.tokens")]
            return _without_unused(texts, header.value("tokenizer.ggml.token_type"))
        config = {**self.engine.config, "vocab_size": self.engine.n_vocab}
        try:
            vocabulary = load_vocabulary(self.path, config, roles=token_roles(config))
        except (UnsupportedError, TokenizerError):
            return None
        kinds = next((key.value for key in vocabulary.keys if key.key == "tokenizer.ggml.token_type"), None)
        return _without_unused(vocabulary.tokens, kinds)

    def windows(self, text: Text, *, n_ctx: int, n_chunks: int | None) -> Windows:
        """Tokenize a text with this model's tokenizer, and cut it into windows.

        Raises MeasureError if it is too short; TokenizerError or UnsupportedError if the tokenizer cannot be built.
        """
        if isinstance(self.engine, GgufEngine):
            ids, bos = text_tokens(self.path, text.text)
            return cut_windows(ids, bos, n_ctx=n_ctx, n_chunks=n_chunks, name=text.name, sha256=text.sha256)
        files, size = read_tokenizer(self.path), self.engine.n_vocab
        text_ids = tokens.token_ids(files, [text.text.removesuffix("\n")])
        bos = tokens.first_token(files, {**self.engine.config, "vocab_size": size}, size)
        whole = text_ids if bos is None else np.concatenate([np.array([bos], np.int32), text_ids])
        return cut_windows(whole.tolist(), bos, n_ctx=n_ctx, n_chunks=n_chunks, name=text.name, sha256=text.sha256)

    def close(self) -> None:
        """Close the files and free the memory."""
        self.engine.close()


def open_subjects(path: Path, *, threads: int, device: object = None) -> list[Subject]:
    """Open the model at `path` (any shard of a split GGUF), or every file of a folder of GGUF files.

    Raises CheckpointError or UnsupportedError if there is no model, or if it cannot be run.
    """
    if path.is_dir() and not (path / "config.json").exists():
        files = model_files(path)
        if not files:
            inner = output_folder(path) or "a folder of weights or a GGUF file"
            raise CheckpointError(f"{path} contains neither a config.json nor GGUF files; pass {inner}")
        return [_gguf(file, threads) for file in files]
    if path.is_dir():
        return [_folder(path, open_folder(path, threads=threads, device=device))]
    if not path.exists():
        raise CheckpointError(f"{path} is not found; pass a GGUF file or a folder of weights")
    return [_gguf(shard_paths(path)[0], threads)]


def checkpoint_subject(checkpoint: Checkpoint, *, threads: int, device: object = None) -> Subject:
    """The subject of an open checkpoint, for example from the hub; the subject closes it."""
    engine = FolderEngine(checkpoint, threads=threads, device=device)
    return _folder(checkpoint.folder, engine, checkpoint.name)


def check_vocabularies(reference: Subject, candidates: Sequence[Subject], warn: Callable[[str], object]) -> None:
    """Raises MeasureError if a token id of a candidate has another text than in the reference."""
    for candidate in candidates:
        if candidate.engine.n_vocab != reference.engine.n_vocab:
            raise MeasureError(
                f"{candidate.name} has a vocabulary of {candidate.engine.n_vocab} tokens, {reference.name} one of"
                f" {reference.engine.n_vocab}; measure models of one vocabulary"
            )
        if candidate.vocabulary is None or reference.vocabulary is None:
            one = candidate if candidate.vocabulary is None else reference
            warn(f"the tokens of {one.name} cannot be listed; only the sizes of the vocabularies are compared")
            continue
        pairs = enumerate(zip(reference.vocabulary, candidate.vocabulary, strict=True))
        different = next(((at, a, b) for at, (a, b) in pairs if a != b and a is not None and b is not None), None)
        if different:
            at, a, b = different
            raise MeasureError(
                f"{candidate.name} has another vocabulary than {reference.name}: its token {at} is {_shown(b)}, not"
                f" {_shown(a)}; measure models of one vocabulary"
            )


def check_context(reference: Subject, n_ctx: int, warn: Callable[[str], object]) -> None:
    """Warn of windows of more tokens than the reference was trained for."""
    shape = reference.description.shape
    if shape.context is not None and shape.rope_scaling is None and n_ctx > shape.context:
        warn(
            f"{reference.name} was trained for {shape.context} tokens, so its perplexity rises in windows of {n_ctx};"
            f" use --ctx {shape.context}"
        )


def _gguf(path: Path, threads: int) -> Subject:
    if path.is_file() and read_header(path).answers_a_text:
        raise UnsupportedError(
            f"{path.name} has an encoder and a decoder; measure compares models of a decoder or of an encoder alone"
        )
    engine = GgufEngine(path, n_threads=threads)
    description = inspect_source(str(path))
    return Subject(description.name, (description.type or "gguf").lower(), path, engine, description)


def _folder(path: Path, engine: FolderEngine, name: str | None = None) -> Subject:
    description = inspect_source(str(path))
    label = engine.kind
    if label == "hf" and description.weights:
        label = description.weights.groups[0].type.lower()
    return Subject(name or path.resolve().name, label, path, engine, description)


def _without_unused(texts: Sequence[bytes], kinds: Sequence[int] | None) -> list[bytes | None]:
    if kinds is None:
        return list(texts)
    return [None if kind == _UNUSED else text for text, kind in zip(texts, kinds, strict=True)]


def _bytes(text: bytes | str) -> bytes:
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text)


def _shown(text: bytes) -> str:
    return repr(text.decode("utf-8", "replace")[:24])
