"""Calibration samples: the token ids of one text or several, cut into pieces of equal length."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint import Checkpoint
from quantkit.errors import CalibrationError
from quantkit.families import find_family
from quantkit.files import user_path
from quantkit.machine import release_freed_memory
from quantkit.system.addresses import check_endpoint
from quantkit.texts import tokens
from quantkit.texts.dataset_name import parse_dataset
from quantkit.texts.documents import MOST_CHARACTERS, Document, characters, read_documents
from quantkit.texts.mixed import equal_shares, interleaved, text_sources
from quantkit.texts.tokens import ChatFormat, Encoder
from quantkit.tokenizer.files import read as read_tokenizer
from quantkit.units import listed

DEFAULT_TEXT = Path(__file__).with_name("default_text.jsonl.xz")
DEFAULT_NAME = "quantkit's default text"
_MIN_SAMPLES = 8
"""A text for fewer samples is an error, not a warning."""


@dataclass(frozen=True)
class SampledText:
    """A calibration text, and how many samples it gives.

    `name`: the file name, the dataset id, or DEFAULT_NAME. `sha256`: of the tokenized text in UTF-8, including the chat
    template. `tokens`: the number of tokens of the whole text.
    """

    name: str
    sha256: str
    tokens: int
    n_samples: int


@dataclass(frozen=True)
class Samples:
    """Token ids for calibration, int32 (n_samples, seq_len), and the texts that they are from.

    `chat`: whether conversations were rendered with the checkpoint's chat template.
    """

    tokens: NDArray[np.int32]
    texts: tuple[SampledText, ...]
    chat: bool
    warnings: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The name of each text."""
        return [text.name for text in self.texts]

    @property
    def name(self) -> str:
        """The names of all texts, for messages."""
        return listed(self.names)

    def facts(self) -> dict[str, Any]:
        """What documents say of the samples; a list for each text only where there are several."""
        alone = len(self.texts) == 1
        hashes = [text.sha256 for text in self.texts]
        return {
            "text": self.name if alone else self.names,
            "sha256": hashes[0] if alone else hashes,
            "samples": len(self.tokens),
            **({} if alone else {"samples_per_text": [text.n_samples for text in self.texts]}),
            "tokens_per_sample": int(self.tokens.shape[1]),
        }

    def record(self) -> dict[str, Any]:
        """The entry for the origin record."""
        return {**self.facts(), "chat_template": self.chat}


@dataclass(frozen=True)
class TextTokenizer:
    """What turns documents into token ids.

    `vocab`: rows of the embedding. `first`: BOS before each sample, or None. `at_once`: pieces of text in one call of
    `encode`.
    """

    name: str
    encode: Encoder
    chat: ChatFormat
    vocab: int
    first: int | None
    at_once: int = 16


@dataclass(frozen=True)
class SampleRequest:
    """Which samples to take: `n_samples` of `seq_len` tokens from `source`.

    source: a file (see `documents.read_documents`), a hub dataset `ORG/NAME[:SPLIT]`, or None or "default" for
    quantkit's own text; or several of these, which share the samples equally. chat: see `tokens.render_documents`.
    spread: take samples at even distances over the whole text; otherwise take them from its start.
    """

    source: str | Sequence[str] | None
    n_samples: int
    seq_len: int
    chat: bool | None = None
    spread: bool = True
    offline: bool = False


@dataclass(frozen=True)
class _LoadedText:
    documents: list[Document]
    name: str
    warnings: tuple[str, ...]

    @property
    def has_conversations(self) -> bool:
        return any(not isinstance(document, str) for document in self.documents)


def load_samples(checkpoint: Checkpoint, request: SampleRequest) -> Samples:
    """The samples of a request, tokenized with the tokenizer of `checkpoint`; see `make_samples`.

    Raises:
        CalibrationError, MissingExtraError, HubError, TemplateError: see `make_samples`.
        TokenizerError, UnsupportedError: the tokenizer cannot be loaded.
    """
    vocab = find_family(checkpoint.config).sizes(checkpoint.config).vocab
    return make_samples(request, lambda: folder_tokenizer(checkpoint, vocab))


def folder_tokenizer(checkpoint: Checkpoint, vocab: int) -> TextTokenizer:
    """The tokenizer of a checkpoint whose embedding has `vocab` rows. Raises TokenizerError, UnsupportedError."""
    files = read_tokenizer(checkpoint.folder)
    return TextTokenizer(
        name=checkpoint.name,
        encode=tokens.encoder(files),
        chat=tokens.chat_format(files),
        vocab=vocab,
        first=tokens.first_token(files, {**checkpoint.config, "vocab_size": vocab}, vocab),
    )


def make_samples(request: SampleRequest, load_tokenizer: Callable[[], TextTokenizer]) -> Samples:
    """The samples of a request.

    If the tokenizer adds BOS, every sample begins with BOS and has one token less of the text. A text that is too short
    for its share gives fewer samples and a warning; the other texts give no more for it. The samples of several texts
    are in the order of `mixed.interleaved`.

    Raises:
        CalibrationError: a text is missing, empty, binary, malformed or listed twice; it has too few tokens for 8
            samples (or for its share, if smaller); there are fewer samples than texts; or a token id exceeds the
            embedding.
        MissingExtraError: a text is Parquet and pyarrow is not installed.
        HubError: a dataset cannot be downloaded.
        TemplateError: the chat template fails.
    """
    if request.n_samples < 1 or request.seq_len < 2:
        raise CalibrationError(
            f"cannot calibrate on {request.n_samples} samples of {request.seq_len} tokens; use at least 1 sample of 2"
            " tokens"
        )
    sources = text_sources(request.source)
    shares = equal_shares(request.n_samples, len(sources))
    loaded = [_loaded(source, offline=request.offline) for source in sources]
    tokenizer = load_tokenizer()
    conversations = any(text.has_conversations for text in loaded)
    parts = []
    for text, share in zip(loaded, shares, strict=True):
        # of several texts only one must have conversations for --chat
        chat = request.chat if text.has_conversations or not conversations else None
        parts.append(_text_samples(text, replace(request, n_samples=share, chat=chat), tokenizer))
        release_freed_memory()
    rows = [iter(part.tokens) for part in parts]
    order = interleaved([len(part.tokens) for part in parts])
    return Samples(
        tokens=np.stack([next(rows[text]) for text in order]),
        texts=tuple(text for part in parts for text in part.texts),
        chat=any(part.chat for part in parts),
        warnings=tuple(warning for part in parts for warning in part.warnings),
    )


def _loaded(source: str | None, *, offline: bool) -> _LoadedText:
    return _LoadedText(*load_documents(source, offline=offline))


def _text_samples(text: _LoadedText, request: SampleRequest, tokenizer: TextTokenizer) -> Samples:
    """The samples of one text, in its order."""
    name = text.name
    rendered = tokens.render_documents(text.documents, tokenizer.chat, chat=request.chat, name=name)
    ids = tokens.ids_of_pieces(tokenizer.encode, rendered.texts, tokenizer.at_once)
    if not ids.size:
        raise CalibrationError(f"the calibration text {name} is empty; pass a text with words")
    if int(ids.max()) >= tokenizer.vocab:
        raise CalibrationError(
            f"the tokenizer gives the id {int(ids.max())} in {name}, but the embedding of {tokenizer.name} has only"
            f" {tokenizer.vocab} rows; use the tokenizer files that belong to these weights"
        )
    cut, short = cut_samples(ids, request.n_samples, request.seq_len, tokenizer.first, spread=request.spread, name=name)
    digest = hashlib.sha256()
    for piece in rendered.texts:
        digest.update(piece.encode("utf-8", "surrogatepass"))
    return Samples(
        tokens=cut,
        texts=(SampledText(name, digest.hexdigest(), len(ids), len(cut)),),
        chat=rendered.rendered > 0,
        warnings=(*text.warnings, *rendered.warnings, *short),
    )


def cut_samples(
    ids: NDArray[np.int32], n_samples: int, seq_len: int, first: int | None, *, spread: bool, name: str
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Cut `ids` (n,) into samples, int32 (n_samples, seq_len), and return them with warnings.

    `first`: the token before every sample, None for no such token. Raises CalibrationError when `ids` are too few.
    """
    length = seq_len - (first is not None)
    n_cut = min(len(ids) // length, n_samples)
    warnings: tuple[str, ...] = ()
    if n_cut < n_samples:
        short = f"{name} has {len(ids)} tokens, but {n_samples} samples of {seq_len} tokens need {n_samples * length}"
        if n_cut < min(n_samples, _MIN_SAMPLES):
            raise CalibrationError(f"{short}; pass a longer text, or use fewer or shorter samples")
        warnings = (f"{short}; {n_cut} samples are used",)
    last, steps = len(ids) - length, max(n_cut - 1, 1)
    starts = [number * last // steps if spread else number * length for number in range(n_cut)]
    samples = np.stack([ids[start : start + length] for start in starts])
    if first is not None:
        # A rendered conversation may begin with BOS already, and models are not trained with two.
        repeated = samples[:, 0] == first
        begun = np.concatenate([np.full((n_cut, 1), first, np.int32), samples], axis=1)
        for number in np.flatnonzero(repeated):
            start = starts[number]
            if start + seq_len <= len(ids):
                begun[number] = ids[start : start + seq_len]
        samples = begun
    return np.ascontiguousarray(samples, dtype=np.int32), warnings


def load_documents(source: str | None, *, offline: bool) -> tuple[list[Document], str, tuple[str, ...]]:
    """The documents of a source (see `load_samples`), its name, and warnings. Raises CalibrationError, HubError."""
    if source is None:
        documents, warnings = read_documents(DEFAULT_TEXT)
        return documents, DEFAULT_NAME, tuple(warnings)
    path = user_path(source)
    dataset = parse_dataset(source)
    if dataset is None or path.exists():
        documents, warnings = read_documents(path)
        return documents, path.name, tuple(warnings)
    # the hub's client takes a fifth of a second to load
    check_endpoint()
    from quantkit.texts.dataset import dataset_files

    documents, remaining = [], MOST_CHARACTERS
    for file in dataset_files(dataset, offline=offline):
        file_documents, warnings = read_documents(file, remaining)
        documents += file_documents
        if warnings:
            return documents, source, (f"{source} is long; only its files up to {file.name} are used",)
        remaining -= sum(map(characters, file_documents))
    return documents, source, ()
