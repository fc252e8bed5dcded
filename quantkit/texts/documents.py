"""Documents from text files: plain text, JSON, JSON lines or Parquet.

A document is a text or a conversation. A conversation is a list of messages with `role` and `content`.
"""

import gzip
import importlib
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from quantkit.errors import CalibrationError, MissingExtraError

Document = str | list[dict[str, str]]

MOST_CHARACTERS = 1 << 24
"""Limit of characters of one source: enough for 2,000 samples of 2,048 tokens, tokenized in seconds."""
_LARGEST_JSON = 1 << 28
_KEYS = ("text", "messages", "conversations")
# ShareGPT's role names.
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}


def read_documents(path: Path, most: int = MOST_CHARACTERS) -> tuple[list[Document], list[str]]:
    """The documents of one file, and warnings (only the start of a long file is used).

    The file name's ending gives the format. `.jsonl` and `.json` contain objects with `text` or `messages` (or
    ShareGPT's `conversations`). `.parquet` has a column with one of these names. Any other file is one text. `.gz` and
    `.xz` may follow. Reading ends after `most` characters (bytes for plain text).

    Raises:
        CalibrationError: the file is missing, damaged or malformed.
        MissingExtraError: the file is Parquet and pyarrow is not installed.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in _OPENERS else ""
    kind = suffixes[-1] if suffixes else ""
    try:
        if kind == ".parquet":
            return _up_to_enough(_parquet(path), path, most)
        with _OPENERS[packed](path, "rb") if packed else path.open("rb") as file:
            if kind in (".jsonl", ".ndjson"):
                return _up_to_enough(_lines(file, path), path, most)
            if kind == ".json":
                return _up_to_enough(_json(file, path), path, most)
            return _plain(file, path, most)
    except FileNotFoundError as error:
        raise CalibrationError(f"text file {path} not found; check the path") from error
    except IsADirectoryError as error:
        raise CalibrationError(f"{path} is a folder, not a text file; pass a file in it") from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or f"damaged {packed or 'file'}: {error}"
        raise CalibrationError(f"cannot read text file {path} ({reason}); check the file") from error


def characters(document: Document) -> int:
    """Length of a document in characters."""
    return len(document) if isinstance(document, str) else sum(len(message["content"]) for message in document)


def plain_text(document: Document) -> str:
    """A document as plain text: the text, or the contents of its messages joined by newlines.

    A text that does not end with a newline gets two newlines.
    """
    text = document if isinstance(document, str) else "\n".join(message["content"] for message in document)
    return text if text.endswith("\n") else text + "\n\n"


def _up_to_enough(documents: Iterable[Document], path: Path, most: int) -> tuple[list[Document], list[str]]:
    documents_read: list[Document] = []
    size = 0
    for document in documents:
        if size >= most:
            return documents_read, [_only_the_start(path, most)]
        documents_read.append(document)
        size += characters(document)
    return documents_read, []


def _only_the_start(path: Path, most: int) -> str:
    return f"{path.name} is long; only its first {most / 1e6:.0f} million characters are used"


def _plain(file: IO[bytes], path: Path, most: int) -> tuple[list[Document], list[str]]:
    data = file.read(most + 1)
    if len(data) <= most:
        return [_decoded(data, path.name)], []
    end = data.rfind(b"\n", 0, most) + 1 or most
    return [_decoded(data[:end], path.name, cut=True)], [_only_the_start(path, most)]


def _decoded(data: bytes, source: str, *, cut: bool = False) -> str:
    """Decode UTF-8. With `cut`, the last character may be incomplete and is dropped."""
    zero = data.find(b"\0")
    if zero >= 0:
        raise CalibrationError(f"{source} is not text: byte {zero} is zero; pass UTF-8 text, JSON lines or Parquet")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if cut and error.end == len(data) and len(data) - error.start < 4:
            return data[: error.start].decode("utf-8-sig")
        raise CalibrationError(
            f"{source} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}; save it as UTF-8"
        ) from error


def _lines(file: IO[bytes], path: Path) -> Iterator[Document]:
    for number, line in enumerate(file, 1):
        if line.strip():
            where = f"line {number} of {path.name}"
            yield _document(_parsed(_decoded(line, where), where), where)


def _json(file: IO[bytes], path: Path) -> Iterator[Document]:
    """Documents of a JSON file: an array of objects, one object, or (common in practice) one object a line."""
    data = file.read(_LARGEST_JSON + 1)
    if len(data) > _LARGEST_JSON:
        raise CalibrationError(
            f"{path.name} is larger than {_LARGEST_JSON >> 20} MiB; convert it to JSON lines (.jsonl)"
        )
    text = _decoded(data, path.name)
    first, _, following = text.lstrip().partition("\n")
    if following.strip() and first.startswith("{") and first.rstrip().endswith("}"):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                where = f"line {number} of {path.name}"
                yield _document(_parsed(line, where), where)
        return
    value = _parsed(text, path.name)
    for number, entry in enumerate(value if isinstance(value, list) else [value], 1):
        yield _document(entry, f"entry {number} of {path.name}")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CalibrationError(
            f"{where} is not valid JSON: {error.msg} at character {error.pos + 1}; correct it"
        ) from error
    except ValueError as error:
        raise CalibrationError(f"{where} has a number with too many digits; correct it") from error
    except RecursionError as error:
        raise CalibrationError(f"{where} is nested too deeply for JSON; flatten it") from error


def _document(entry: Any, where: str) -> Document:
    if isinstance(entry, str):
        return _unicode(entry, where)
    key = next((key for key in _KEYS if isinstance(entry, dict) and entry.get(key) is not None), None)
    if key is None:
        content = f"the keys {', '.join(map(repr, entry))[:80]}" if isinstance(entry, dict) else type(entry).__name__
        raise CalibrationError(
            f"{where} has neither 'text' nor 'messages', but {content}; rename the key that holds the text to 'text'"
        )
    if key == "text":
        if not isinstance(entry["text"], str):
            raise CalibrationError(f"{where} has a 'text' of type {type(entry['text']).__name__}; it must be a string")
        return _unicode(entry["text"], where)
    messages = entry[key]
    if not isinstance(messages, list):
        raise CalibrationError(f"{where} has {key!r} of type {type(messages).__name__}; it must be a list")
    return [_message(message, where, key) for message in messages]


def _message(message: Any, where: str, key: str) -> dict[str, str]:
    if isinstance(message, dict):
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if isinstance(role, str) and isinstance(content, str):
            return {"role": _unicode(_ROLES.get(role, role), where), "content": _unicode(content, where)}
    raise CalibrationError(
        f"{where} has an invalid message in {key!r}; every message must have a 'role' and a 'content' that are strings"
    )


def _unicode(text: str, where: str) -> str:
    """`text`, which JSON may have filled with half characters that no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CalibrationError(
            f"{where} has the lone surrogate {text[error.start]!a} at character {error.start + 1}; remove it"
        ) from error
    return text


def _parquet(path: Path) -> Iterator[Document]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingExtraError(
            f"{path.name} is Parquet and pyarrow is not installed; install it with: pip install pyarrow"
        ) from error
    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        column = next((name for name in _KEYS if name in names), None)
        if column is None:
            raise CalibrationError(
                f"{path.name} has no column 'text' or 'messages' (its columns: {', '.join(names)[:80]});"
                " export the column that holds the text as .txt or .jsonl"
            )
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=[column]):
            for value in batch.column(0).to_pylist():
                number += 1
                if value is not None:
                    yield _document({column: value}, f"row {number} of {path.name}")
    except (ValueError, OSError) as error:  # pyarrow's errors are subclasses of one of these
        reason = str(error).splitlines()[0][:120]
        raise CalibrationError(f"{path.name} is not readable Parquet ({reason}); export it again") from error
