"""The tokenizer files of a Hugging Face checkpoint, read once and checked for shape.

Everything the vocabulary needs from disk comes from here; nothing is interpreted yet.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit.errors import TokenizerError

from . import chat_templates, fairseq_model, plamo, ranks, rwkv_world, vocab_txt


@dataclass(frozen=True)
class TokenizerFiles:
    """The tokenizer files of a checkpoint folder. An absent JSON object is {}; an absent path or `tokenizer` is None.

    Attributes:
        tokenizer: tokenizer.json, or what BERT's vocab.txt means if that is the only vocabulary.
        tokenizer_data: its bytes in UTF-8.
        config: tokenizer_config.json.
        special: special_tokens_map.json.
        added: added_tokens.json (token -> id).
        model, vocab, merges: the paths of tokenizer.model (or T5's spiece.model), vocab.json and merges.txt.
        ranks: the path of Qwen-1's qwen.tiktoken if nothing else describes the tokenizer; `tokenizer` is made from it.
        pieces: the path of PLaMo's tokenizer.jsonl.
        world: the path of RWKV's list of words.
        templates: the chat templates by file; the one in use comes first.
    """

    folder: Path
    tokenizer: dict[str, Any] | None
    tokenizer_data: bytes | None
    config: dict[str, Any]
    special: dict[str, Any]
    added: dict[str, int]
    model: Path | None
    vocab: Path | None
    merges: Path | None
    templates: tuple[tuple[str, chat_templates.Template], ...]
    ranks: Path | None = None
    pieces: Path | None = None
    world: Path | None = None

    def without_vocabulary(self) -> "TokenizerFiles":
        """The same files without the parsed tokens and merges of tokenizer.json, which hold most of the memory."""
        model = (self.tokenizer or {}).get("model")
        if self.tokenizer is None or not isinstance(model, dict):
            return self
        kept = {name: value for name, value in model.items() if name not in ("vocab", "merges")}
        return replace(self, tokenizer={**self.tokenizer, "model": kept})

    @property
    def template(self) -> chat_templates.Template | None:
        """The chat template in use."""
        return self.templates[0][1] if self.templates else None


def read(folder: Path) -> TokenizerFiles:
    """Read the tokenizer files of `folder`.

    Raises:
        TokenizerError: the folder has no tokenizer, or the content of a file does not fit its name.
    """
    if not folder.is_dir():
        raise TokenizerError(f"{folder} is not a folder; pass the checkpoint folder with the tokenizer")
    data = _read_bytes(folder / "tokenizer.json")
    table = _ranks(folder) if data is None else None
    if table is not None:
        data = ranks.tokenizer_json(table).encode("utf-8")
    config = read_object(folder / "tokenizer_config.json") or {}
    if data is None and _has_only_words(folder):
        data = vocab_txt.tokenizer_json(folder / vocab_txt.FILE_NAME, config).encode("utf-8")
    if data is None and _is_of_fairseq(folder, config):
        config = {**fairseq_model.SPECIAL, **config}
        data = fairseq_model.tokenizer_json(folder / fairseq_model.FILE_NAME).encode("utf-8")
    files = TokenizerFiles(
        folder=folder,
        tokenizer=None
        if data is None
        else _object(_decoded(data, folder / "tokenizer.json"), folder / "tokenizer.json"),
        tokenizer_data=data,
        config=config,
        special=read_object(folder / "special_tokens_map.json") or {},
        added=_added(folder / "added_tokens.json"),
        model=_present(folder / "tokenizer.model") or _present(folder / "spiece.model"),
        vocab=_present(folder / "vocab.json"),
        merges=_present(folder / "merges.txt"),
        templates=_templates(folder, config),
        ranks=table,
        pieces=_present(folder / plamo.FILE_NAME),
        world=_present(folder / rwkv_world.FILE_NAME),
    )
    alone = not (files.vocab and files.merges) and files.pieces is None and files.world is None
    if files.tokenizer is None and files.model is None and alone:
        hint = " (tekken.json alone is not supported yet)" if (folder / "tekken.json").is_file() else ""
        table = next(iter(sorted(folder.glob("*.tiktoken"))), None)
        if table:
            hint = f" ({table.name} says neither how text is split nor which tokens are special)"
        raise TokenizerError(
            f"{folder} has no tokenizer{hint}: expected tokenizer.json, tokenizer.model, vocab.txt, or vocab.json "
            "with merges.txt; download them from the model's page into that folder"
        )
    return files


def read_text(path: Path) -> str | None:
    """The text of the file; None if it does not exist."""
    data = _read_bytes(path)
    return None if data is None else _decoded(data, path).replace("\r\n", "\n").replace("\r", "\n")


def _read_bytes(path: Path) -> bytes | None:
    if not path.is_file():
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _decoded(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> TokenizerError:
    return TokenizerError(f"{path} cannot be read as UTF-8 text ({error}); download it again")


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object of the file; None if it does not exist."""
    text = read_text(path)
    return None if text is None else _object(text, path)


def _object(text: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} holds a JSON {type(value).__name__}, not an object; download it again")
    return value


def _added(path: Path) -> dict[str, int]:
    added = read_object(path) or {}
    for token, number in added.items():
        if not isinstance(number, int) or number < 0:
            raise TokenizerError(f"{path} gives token {token!r} the id {number!r}, which is not a token id; correct it")
    return added


def _present(path: Path) -> Path | None:
    return path if path.is_file() else None


def _ranks(folder: Path) -> Path | None:
    """qwen.tiktoken, if tokenizer.model is absent, and vocab.json with merges.txt too."""
    if (folder / "tokenizer.model").is_file() or (
        (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    ):
        return None
    return _present(folder / ranks.FILE_NAME)


def _has_only_words(folder: Path) -> bool:
    """Whether BERT's vocab.txt is the only vocabulary of the folder."""
    others = ("tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "vocab.json", ranks.FILE_NAME)
    return (folder / vocab_txt.FILE_NAME).is_file() and not any((folder / name).is_file() for name in others)


def _is_of_fairseq(folder: Path, config: dict[str, Any]) -> bool:
    """Whether XLM-RoBERTa's sentencepiece.bpe.model is the vocabulary; CamemBERT's has other ids."""
    named = str(config.get("tokenizer_class") or "XLMRobertaTokenizer")
    return (
        named.startswith("XLMRoberta")
        and (folder / fairseq_model.FILE_NAME).is_file()
        and not (folder / "tokenizer.model").is_file()
    )


def _templates(folder: Path, config: dict[str, Any]) -> tuple[tuple[str, chat_templates.Template], ...]:
    paths = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    return chat_templates.places(
        read_text(folder / "chat_template.jinja"),
        {path.stem: read_text(path) or "" for path in paths},
        config,
        read_object(folder / "chat_template.json") or {},
    )


def token_text(entry: Any) -> str | None:
    """A special token as tokenizer_config.json writes it: its text, or an object with `content`."""
    if isinstance(entry, Mapping):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None
