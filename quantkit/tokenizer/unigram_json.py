"""The vocabulary of an encoder's unigram tokenizer.json (XLM-RoBERTa's kind), as llama.cpp's `t5` vocabulary.

Ids come from tokenizer.json, because these models number their tokens in another way than their SentencePiece file.

Source: llama.cpp conversion/bert.py (_xlmroberta_set_vocab), src/llama-vocab.cpp (llm_tokenizer_ugm).
"""

import binascii
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

from gguf import GGUFValueType

from quantkit.errors import TokenizerError, UnsupportedError
from quantkit.gguf import keyvalues

from .files import TokenizerFiles
from .huggingface import build_tokenizer
from .pretokenizers import normalizers
from .tokens import CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED, Tokens, fit, padding, say_padded

_PADDING_SCORE = -10000.0


def is_unigram(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json holds a unigram model."""
    return (tokenizer.get("model") or {}).get("type") == "Unigram"


def load(files: TokenizerFiles, config: Mapping[str, Any]) -> Tokens:
    """The vocabulary of a unigram tokenizer.json, padded to config's vocab_size.

    Raises:
        TokenizerError: it is larger than the embedding, or its character map is damaged.
        UnsupportedError: text is changed in a way that llama.cpp's unigram tokenizer does not follow.
    """
    source = files.tokenizer
    assert source is not None
    path = str(files.folder / "tokenizer.json")
    charsmap = _character_map(source.get("normalizer"), path)
    prefix, squeezed = _spaces(source, path)
    tokenizer = build_tokenizer(files)
    added = tokenizer.get_added_tokens_decoder()
    vocab, size, warnings = fit(tokenizer.get_vocab(with_added_tokens=True), added, int(config.get("vocab_size") or 0))
    scores = [float(score) for _, score in source["model"]["vocab"]]
    tokens = Tokens("t5", "default", padding(range(size)), [UNUSED] * size, [_PADDING_SCORE] * size, warnings=warnings)
    assert tokens.scores is not None
    unknown = source["model"].get("unk_id")
    for text, number in vocab.items():
        tokens.texts[number] = text.encode()
        tokens.scores[number] = scores[number] if number < len(scores) else 0.0
        if number == unknown:
            tokens.types[number] = UNKNOWN
        elif number in added:
            tokens.types[number] = CONTROL if added[number].special else USER_DEFINED
        else:
            tokens.types[number] = NORMAL
    say_padded(tokens, len(vocab))
    tokens.last = [
        keyvalues.boolean("tokenizer.ggml.add_space_prefix", prefix),
        keyvalues.boolean("tokenizer.ggml.remove_extra_whitespaces", squeezed),
    ]
    if charsmap:
        tokens.last.append(keyvalues.array("tokenizer.ggml.precompiled_charsmap", GGUFValueType.UINT8, list(charsmap)))
    return tokens


def _character_map(node: Any, path: str) -> bytes:
    """SentencePiece's compiled map of characters, b"" without one."""
    charsmap = b""
    for step in _steps(node, "normalizers"):
        kind = step.get("type")
        if kind == "Precompiled":
            try:
                charsmap = b64decode(step.get("precompiled_charsmap") or "", validate=True)
            except (binascii.Error, TypeError) as error:
                raise TokenizerError(
                    f"{path}: precompiled_charsmap is not base64 ({error}); download it again"
                ) from error
        elif kind not in ("Replace", "Strip"):
            named = ", ".join(normalizers(node))
            raise UnsupportedError(f"{path} normalizes text with {named}; llama.cpp's unigram tokenizer does not")
    return charsmap


def _spaces(source: Mapping[str, Any], path: str) -> tuple[bool, bool]:
    """Whether a space is put before a text, and whether runs of spaces become one."""
    prefix = replaced = False
    squeezed = any(step.get("type") == "Replace" for step in _steps(source.get("normalizer"), "normalizers"))
    for step in _steps(source.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace" and step.get("replacement", SPACE) == SPACE:
            scheme = step.get("prepend_scheme") or ("always" if step.get("add_prefix_space", True) else "never")
            prefix, replaced = scheme != "never", True
        elif step.get("type") == "WhitespaceSplit":
            squeezed = True
        else:
            raise UnsupportedError(
                f"{path} splits text with {step.get('type')}, which llama.cpp's unigram tokenizer does not"
            )
    if not replaced:
        raise UnsupportedError(f"{path} never replaces spaces by {SPACE!r}, as llama.cpp's unigram tokenizer does")
    return prefix, squeezed


def _steps(node: Any, children: str) -> list[dict[str, Any]]:
    if not node:
        return []
    if node.get("type") == "Sequence":
        return [step for child in node.get(children, []) for step in _steps(child, children)]
    return [node]
