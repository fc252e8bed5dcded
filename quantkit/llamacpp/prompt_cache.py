"""A prompt cache on disk: the token ids of a prompt with the KV cache or state that llama.cpp has after them.

A file has a line with the format's name, the SHA-256 of the rest, a line of JSON, and llama.cpp's bytes
(llama_state_seq_get_data). It is used for the same model, llama.cpp and type of KV cache only.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.errors import UsageError
from quantkit.files import cannot_write, open_partial, partial_path

_MAGIC = b"quantkit prompt cache 1\n"
_BLOCKS, _BLOCK = 64, 1 << 16


class UnusableCache(Exception):
    """Why a file cannot be used for this model."""


def require_prompt_cache(path: Path) -> None:
    """Raise UsageError if `path` is a file of another kind, which must not be overwritten, or has no folder."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"--prompt-cache {path} cannot be a file; pass the name of a file in an existing folder")
    if not path.exists():
        return
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
    except OSError as error:
        raise UsageError(f"--prompt-cache {path} cannot be read: {error.strerror}") from error
    if not _MAGIC.startswith(start):
        raise UsageError(f"--prompt-cache {path} is not a prompt cache of quantkit; pass the name of another file")


def fingerprint(model: Path) -> str:
    """SHA-256 of the sizes of a model's files and of 64 blocks of each, the header among them."""
    # the child process reads and writes caches, and does without the gguf package
    from quantkit.gguf.reader import shard_paths

    digest = hashlib.sha256()
    for path in shard_paths(model):
        size = path.stat().st_size
        digest.update(str(size).encode())
        with path.open("rb") as file:
            for number in range(_BLOCKS):
                file.seek(number * max(size - _BLOCK, 0) // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def read(path: Path, identity: Mapping[str, Any]) -> tuple[list[int], memoryview] | None:
    """The token ids and llama.cpp's bytes; None if there is no file.

    `identity`: the model and settings that the file must be of.

    Raises:
        UnusableCache: the file is damaged, or of another model, llama.cpp or type of KV cache.
    """
    try:
        with path.open("rb") as file:
            data = bytearray(os.fstat(file.fileno()).st_size)
            file.readinto(data)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnusableCache(f"cannot be read ({error.strerror})") from error
    first = data.find(b"\n", len(_MAGIC)) + 1
    second = data.find(b"\n", first) + 1
    digest = hashlib.sha256(memoryview(data)[first:]).hexdigest().encode()
    if not data.startswith(_MAGIC) or not first or data[len(_MAGIC) : first - 1] != digest:
        raise UnusableCache("is damaged")
    facts = json.loads(data[first:second])
    for name, value in identity.items():
        if facts["identity"].get(name) != value:
            raise UnusableCache(f"is of another {name}")
    return facts["tokens"], memoryview(data)[second:]


def write(path: Path, identity: Mapping[str, Any], tokens: Sequence[int], state: Any) -> None:
    """Write a cache under a partial name, flush it and rename it to `path`. `state`: a buffer.

    Raises:
        OutputError: the file cannot be written; no partial file is left.
    """
    line = json.dumps({"identity": dict(identity), "tokens": list(tokens)}).encode() + b"\n"
    digest = hashlib.sha256(line)
    digest.update(state)
    partial = partial_path(path)
    descriptor = open_partial(partial, keep=False)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_MAGIC + digest.hexdigest().encode() + b"\n" + line)
            file.write(state)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise cannot_write(path, error) from error
