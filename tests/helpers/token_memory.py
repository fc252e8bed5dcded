"""Long texts are tokenized once in a run of the tests, for each content of the tokenizer's files.

quantkit's default calibration text takes half a second of CPU, and the suite calibrates on it a few hundred times. A
process keeps the ids; the workers of a run and the processes that they fork share them in a folder.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from quantkit.texts import samples, tokens
from quantkit.texts.documents import Document, read_documents
from quantkit.texts.tokens import Encoder
from quantkit.tokenizer.files import TokenizerFiles

FOLDER = "PYTEST_TOKEN_MEMORY"
"""The environment variable with the folder of ids that all processes of this run share."""
_LONG = 5_000
"""Characters of one call of an encoder from which it is remembered."""
_SHARED = 20_000
"""Characters of one call from which the ids are shared with other processes."""

Ids = list[NDArray[np.int32]]


@contextlib.contextmanager
def remembered_tokens() -> Iterator[None]:
    """The ids of long texts, and the documents of the default text, are made once."""
    memory: dict[str, Ids] = {}
    encoder = tokens.encoder
    default = read_documents(samples.DEFAULT_TEXT)

    def remembering(files: TokenizerFiles) -> Encoder:
        encode = encoder(files)
        content = _content(files)

        def ids(texts: Sequence[str]) -> list[Any]:
            length = sum(map(len, texts))
            if length < _LONG:
                return list(encode(texts))
            key = _digest([content, *texts])
            if key not in memory:
                file = _shared_file(key) if length >= _SHARED else None
                memory[key] = _read(file) or [np.array(entry, np.int32) for entry in encode(texts)]
                _write(file, memory[key])
            return memory[key]

        return ids

    def documents(path: Path, *options: int) -> tuple[list[Document], list[str]]:
        if path == samples.DEFAULT_TEXT and not options:
            return list(default[0]), list(default[1])
        return read_documents(path, *options)

    with patch.object(tokens, "encoder", remembering), patch.object(samples, "read_documents", documents):
        yield


def _shared_file(key: str) -> Path | None:
    folder = os.environ.get(FOLDER)
    return Path(folder, f"{key}.npz") if folder else None


def _read(file: Path | None) -> Ids:
    if file is None or not file.exists():
        return []
    with np.load(file) as stored:
        return np.split(stored["ids"], stored["ends"][:-1])


def _write(file: Path | None, ids: Ids) -> None:
    """Keep the ids for other processes; two may write the same file at once."""
    if file is None or file.exists():
        return
    partial = file.with_name(f"{file.stem}-{os.getpid()}.npz")
    np.savez(partial, ids=np.concatenate(ids), ends=np.cumsum([len(entry) for entry in ids]))
    partial.replace(file)


def _content(files: TokenizerFiles) -> str:
    """A digest of all that decides the ids."""
    objects = json.dumps([files.config, files.special, files.added])
    paths = (files.model, files.vocab, files.merges, files.ranks, files.pieces)
    return _digest([objects, files.tokenizer_data, *(None if path is None else path.read_bytes() for path in paths)])


def _digest(parts: Sequence[str | bytes | None]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(b"absent " if data is None else b"%d " % len(data) + data)
    return digest.hexdigest()
