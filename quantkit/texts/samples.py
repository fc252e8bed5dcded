"""Calibration samples: a text in the checkpoint's own tokens, cut into pieces of equal length."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint import Checkpoint
from quantkit.errors import CalibrationError
from quantkit.families import find_family
from quantkit.texts import tokens
from quantkit.texts.dataset import dataset_files, parse_dataset
from quantkit.texts.documents import MOST_CHARACTERS, Document, characters, read_documents
from quantkit.tokenizer.files import read as read_tokenizer

DEFAULT_TEXT = Path(__file__).with_name("default_text.jsonl.xz")
DEFAULT_NAME = "quantkit's default text"
_FEWEST = 8
"""Samples below which what is asked for is not merely cut down."""


@dataclass(frozen=True)
class Samples:
    """Token ids to calibrate on, int32 (n_samples, seq_len), and where they came from.

    `name` is the file's name, the dataset's id, or DEFAULT_NAME; `sha256` that of the text as tokenized, in UTF-8,
    chat template and all; `tokens_in_text` how many tokens it has; `chat` whether conversations in it went through the
    checkpoint's chat template.
    """

    tokens: NDArray[np.int32]
    name: str
    sha256: str
    tokens_in_text: int
    chat: bool
    warnings: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """What a record of origin says of them."""
        return {
            "text": self.name,
            "sha256": self.sha256,
            "samples": len(self.tokens),
            "tokens_per_sample": int(self.tokens.shape[1]),
            "chat_template": self.chat,
        }


def load_samples(
    checkpoint: Checkpoint,
    *,
    source: str | None,
    n_samples: int,
    seq_len: int,
    chat: bool | None = None,
    spread: bool = True,
    offline: bool = False,
) -> Samples:
    """`n_samples` of `seq_len` tokens each out of `source`, by the tokenizer of `checkpoint`.

    `source` is a file (see `documents.read_documents`), `ORG/NAME[:SPLIT]` of the hub, or None for the text that comes
    with quantkit. `chat`: see `tokens.render_documents`. `spread`: from all over the text at even distances, else from
    its start; a text of exactly so many tokens gives the same either way. Where the tokenizer begins a text with BOS,
    each sample begins with it too, and has one token less of the text. A text too short gives fewer samples, with a
    warning, but not fewer than 8 (or than asked for).

    Raises:
        CalibrationError: the text is missing, empty, binary, malformed or too short, or at odds with the embedding.
        MissingExtraError: it is Parquet and pyarrow is not installed.
        HubError, TokenizerError, UnsupportedError, TemplateError: from those rooms.
    """
    if n_samples < 1 or seq_len < 2:
        raise CalibrationError(
            f"cannot calibrate on {n_samples} samples of {seq_len} tokens; use at least 1 sample of 2 tokens"
        )
    documents, name, warnings = load_documents(source, offline=offline)
    files = read_tokenizer(checkpoint.folder)
    text = tokens.render_documents(documents, files, chat=chat)
    ids = tokens.token_ids(files, text.texts)
    vocab = find_family(checkpoint.config).sizes(checkpoint.config).vocab
    if not ids.size:
        raise CalibrationError(f"the calibration text {name} is empty; pass a text with words")
    if int(ids.max()) >= vocab:
        raise CalibrationError(
            f"the tokenizer gives the id {int(ids.max())} in {name}, but the embedding of {checkpoint.name} has only"
            f" {vocab} rows; use the tokenizer files that belong to these weights"
        )
    first = tokens.first_token(files, {**checkpoint.config, "vocab_size": vocab}, vocab)
    cut, short = cut_samples(ids, n_samples, seq_len, first, spread=spread, name=name)
    digest = hashlib.sha256()
    for each in text.texts:
        digest.update(each.encode("utf-8", "surrogatepass"))
    return Samples(
        tokens=cut,
        name=name,
        sha256=digest.hexdigest(),
        tokens_in_text=len(ids),
        chat=text.rendered > 0,
        warnings=(*warnings, *text.warnings, *short),
    )


def cut_samples(
    ids: NDArray[np.int32], n_samples: int, seq_len: int, first: int | None, *, spread: bool, name: str
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """`ids` (n,) cut into int32 (n_samples, seq_len), `first` before each where it is not None; and warnings.

    Raises CalibrationError when there are too few.
    """
    length = seq_len - (first is not None)
    found = min(len(ids) // length, n_samples)
    warnings: tuple[str, ...] = ()
    if found < n_samples:
        short = f"{name} has {len(ids)} tokens, but {n_samples} samples of {seq_len} tokens need {n_samples * length}"
        if found < min(n_samples, _FEWEST):
            raise CalibrationError(f"{short}; pass a longer text, or use fewer or shorter samples")
        warnings = (f"{short}; {found} samples are used",)
    last, steps = len(ids) - length, max(found - 1, 1)
    starts = [number * last // steps if spread else number * length for number in range(found)]
    samples = np.stack([ids[start : start + length] for start in starts])
    if first is not None:
        # A rendered conversation may begin with BOS itself, and no model has seen two.
        repeated = samples[:, 0] == first
        begun = np.concatenate([np.full((found, 1), first, np.int32), samples], axis=1)
        for number in np.flatnonzero(repeated):
            start = starts[number]
            if start + seq_len <= len(ids):
                begun[number] = ids[start : start + seq_len]
        samples = begun
    return np.ascontiguousarray(samples, dtype=np.int32), warnings


def load_documents(source: str | None, *, offline: bool) -> tuple[list[Document], str, tuple[str, ...]]:
    """The documents of a source (see `load_samples`), its name, and warnings. Raises CalibrationError and HubError."""
    if source is None:
        documents, warnings = read_documents(DEFAULT_TEXT)
        return documents, DEFAULT_NAME, tuple(warnings)
    path = Path(source).expanduser()
    asked = parse_dataset(source)
    if asked is None or path.exists():
        documents, warnings = read_documents(path)
        return documents, path.name, tuple(warnings)
    documents, room = [], MOST_CHARACTERS
    for file in dataset_files(asked, offline=offline):
        found, warnings = read_documents(file, room)
        documents += found
        if warnings:
            return documents, source, (f"{source} is long; only its files up to {file.name} are used",)
        room -= sum(map(characters, found))
    return documents, source, ()
