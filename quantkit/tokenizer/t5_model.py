"""The vocabulary of T5's SentencePiece file (tokenizer.model or spiece.model): a unigram model, whose ids stay.

Source: llama.cpp conversion/t5.py (set_vocab).
"""

from collections.abc import Mapping
from typing import Any

from gguf import GGUFValueType

from quantkit.errors import TokenizerError, UnsupportedError
from quantkit.gguf import keyvalues

from . import sentencepiece_model
from .files import TokenizerFiles
from .huggingface import added_token_entries, load_sentencepiece
from .sentencepiece_model import Algorithm
from .tokens import ADDED_SCORE, NORMAL, UNUSED, USER_DEFINED, Tokens, padding, say_padded, too_large

_PADDING_SCORE = -10000.0


def load(files: TokenizerFiles, config: Mapping[str, Any]) -> Tokens:
    """The vocabulary of T5's SentencePiece file, padded to config's vocab_size.

    Tokens that tokenizer_config.json or tokenizer.json add to it (`<extra_id_0>`) get their rows; llama.cpp's converter
    leaves those rows unused.

    Raises:
        TokenizerError: the file is damaged, or larger than the embedding.
        UnsupportedError: it is not a unigram model.
    """
    assert files.model is not None
    load_sentencepiece(files)
    try:
        model = sentencepiece_model.parse(files.model.read_bytes())
    except ValueError as error:
        raise TokenizerError(f"{files.model} is not a SentencePiece model ({error}); download it again") from error
    if model.algorithm != Algorithm.UNIGRAM:
        raise UnsupportedError(f"{files.model} is not a unigram model, which T5 has; quantkit reads T5 with one only")
    size = int(config.get("vocab_size") or len(model.pieces))
    if len(model.pieces) > size:
        raise too_large(len(model.pieces), size)
    missing = range(len(model.pieces), size)
    # as in the converter, user-defined pieces are normal ones
    types = [NORMAL if kind == USER_DEFINED else kind for kind in model.types]
    tokens = Tokens(
        model="t5",
        pre="default",
        texts=model.pieces + padding(missing),
        types=types + [UNUSED] * len(missing),
        scores=list(model.scores) + [_PADDING_SCORE] * len(missing),
    )
    _place_added(files, tokens, len(model.pieces))
    say_padded(tokens, sum(kind != UNUSED for kind in tokens.types) + sum(kind == UNUSED for kind in model.types))
    tokens.last = [
        keyvalues.boolean("tokenizer.ggml.add_space_prefix", model.add_dummy_prefix),
        keyvalues.boolean("tokenizer.ggml.remove_extra_whitespaces", model.remove_extra_whitespaces),
    ]
    if model.precompiled_charsmap:
        charsmap = list(model.precompiled_charsmap)
        tokens.last.append(keyvalues.array("tokenizer.ggml.precompiled_charsmap", GGUFValueType.UINT8, charsmap))
    return tokens


def _place_added(files: TokenizerFiles, tokens: Tokens, pieces: int) -> None:
    """added_tokens.json as the converter reads it, then tokens of the other files in rows that are still unused."""
    assert tokens.scores is not None
    size = len(tokens.texts)
    for text, number in files.added.items():
        if number < size:
            tokens.texts[number], tokens.types[number] = text.encode(), USER_DEFINED
            tokens.scores[number] = ADDED_SCORE
    entries = added_token_entries(files) + [(entry["id"], entry) for entry in _added(files)]
    placed = 0
    for number, entry in entries:
        if pieces <= number < size and tokens.types[number] == UNUSED:
            tokens.place(number, entry["content"], bool(entry.get("special")))
            placed += 1
    if placed:
        tokens.warnings.append(
            f"{placed} added tokens have their rows of the embedding; llama.cpp's converter leaves them unused"
        )


def _added(files: TokenizerFiles) -> list[dict[str, Any]]:
    return list((files.tokenizer or {}).get("added_tokens", []))
