"""The vocabulary of a WordPiece tokenizer (BERT's), as llama.cpp's `bert` vocabulary.

A token that begins a word is stored with U+2581 before it, one that continues a word without its "##". llama.cpp splits
text at white space, punctuation and Chinese characters, as BERT's pre-tokenizer does.

Source: llama.cpp conversion/bert.py (BertModel.set_vocab), src/llama-vocab.cpp (llm_tokenizer_wpm).
"""

from collections.abc import Mapping
from typing import Any

from quantkit.errors import UnsupportedError

from . import pretokenizers
from .files import TokenizerFiles
from .huggingface import build_tokenizer
from .tokens import NORMAL, SPACE, UNUSED, Tokens, fit, padding, say_padded

_CONTINUES = "##"
# llama.cpp ignores the name for this kind of vocabulary
_DEFAULT_PRE = "default"


def is_wordpiece(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json holds a WordPiece model."""
    return (tokenizer.get("model") or {}).get("type") == "WordPiece"


def load(files: TokenizerFiles, config: Mapping[str, Any]) -> Tokens:
    """The vocabulary of a WordPiece tokenizer.json, padded to config's vocab_size.

    Raises:
        TokenizerError: it is larger than the embedding.
        UnsupportedError: llama.cpp splits or joins words in another way.
    """
    assert files.tokenizer is not None
    path = files.folder / "tokenizer.json"
    _check(files.tokenizer, str(path))
    tokenizer = build_tokenizer(files)
    added = tokenizer.get_added_tokens_decoder()
    whole = tokenizer.get_vocab(with_added_tokens=True)
    vocab, vocab_size, warnings = fit(whole, added, int(config.get("vocab_size") or 0))
    tokens = Tokens(
        "bert",
        pretokenizers.wordpiece_name(tokenizer, files.config) or _DEFAULT_PRE,
        # llama.cpp's converter marks these rows as words too
        texts=[SPACE.encode() + text for text in padding(range(vocab_size))],
        types=[UNUSED] * vocab_size,
        warnings=warnings,
    )
    for text, number in vocab.items():
        if number in added:
            tokens.place(number, text, added[number].special)
        else:
            tokens.texts[number], tokens.types[number] = _stored(text).encode(), NORMAL
    say_padded(tokens, len(vocab))
    tokens.warnings += _limits(files.tokenizer, tokens)
    return tokens


def _stored(text: str) -> str:
    """A token's text in the file."""
    return text.removeprefix(_CONTINUES) if text.startswith(_CONTINUES) else SPACE + text


def _check(source: Mapping[str, Any], path: str) -> None:
    """Raise UnsupportedError for a pipeline that llama.cpp's WordPiece tokenizer does not follow."""
    prefix = source["model"].get("continuing_subword_prefix", _CONTINUES)
    if prefix != _CONTINUES:
        raise UnsupportedError(
            f"{path} continues words with {prefix!r}; llama.cpp's WordPiece tokenizer knows only {_CONTINUES}"
        )
    splitter = (source.get("pre_tokenizer") or {}).get("type")
    if splitter != "BertPreTokenizer":
        raise UnsupportedError(
            f"{path} splits text with {splitter or 'nothing'}; llama.cpp's WordPiece tokenizer splits it as"
            " BertPreTokenizer does"
        )
    for kind in pretokenizers.normalizers(source.get("normalizer")):
        if kind not in ("BertNormalizer", "Lowercase", "StripAccents", "NFD", "NFC"):
            raise UnsupportedError(
                f"{path} normalizes text with {kind}, which llama.cpp's WordPiece tokenizer does not do"
            )


def _limits(source: Mapping[str, Any], tokens: Tokens) -> list[str]:
    """Sentences about texts that llama.cpp tokenizes in another way."""
    normalizer = source.get("normalizer") or {}
    warnings = []
    if normalizer.get("type") == "BertNormalizer" and not normalizer.get("handle_chinese_chars", True):
        warnings.append(
            "llama.cpp makes a word of each Chinese character, and this tokenizer does not; such texts get other ids"
        )
    unknown = source["model"].get("unk_token")
    if isinstance(unknown, str) and unknown.encode() not in tokens.texts:
        warnings.append(f"the unknown token {unknown} is not a special token of this tokenizer")
    return warnings
