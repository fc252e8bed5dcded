"""BERT's vocab.txt as the tokenizer.json that transformers makes of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import TokenizerError

FILE_NAME = "vocab.txt"
_CONTINUES = "##"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def tokenizer_json(path: Path, settings: Mapping[str, Any]) -> str:
    """The tokenizer.json of a vocab.txt, with the settings of tokenizer_config.json, as transformers makes it.

    Raises:
        TokenizerError: it cannot be read, or lacks a special token of BERT's.
    """
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} cannot be read as UTF-8 text ({error}); download it again") from error
    vocab = {line: number for number, line in enumerate(lines)}
    names = {token: _named(settings, token) for token in _SPECIAL}
    missing = [name for name in names.values() if name not in vocab]
    if missing:
        raise TokenizerError(
            f"{path} has no token {missing[0]}, so it is not a WordPiece vocabulary; add the checkpoint's"
            " tokenizer.json"
        )
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = sorted((vocab[name], name) for name in names.values())
    first, last = names["[CLS]"], names["[SEP]"]

    def special(name: str, kind: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": kind}}

    single = [special(first, 0), {"Sequence": {"id": "A", "type_id": 0}}, special(last, 0)]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}, special(last, 1)]
    tokens = {name: {"id": name, "ids": [vocab[name]], "tokens": [name]} for name in (first, last)}
    whole = {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": name, **flags} for number, name in added],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
            "strip_accents": settings.get("strip_accents"),
            "lowercase": settings.get("do_lower_case", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens},
        "decoder": {"type": "WordPiece", "prefix": _CONTINUES, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": names["[UNK]"],
            "continuing_subword_prefix": _CONTINUES,
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }
    return json.dumps(whole, ensure_ascii=False)


def _named(settings: Mapping[str, Any], token: str) -> str:
    """What tokenizer_config.json calls one of BERT's special tokens."""
    stated = settings.get(token.strip("[]").lower() + "_token")
    stated = stated.get("content") if isinstance(stated, Mapping) else stated
    return stated if isinstance(stated, str) else token
