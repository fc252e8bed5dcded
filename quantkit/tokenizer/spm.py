"""The vocabulary of a SentencePiece tokenizer.model.

BPE models become llama.cpp's "llama" (SPM) vocabulary, which merges the adjacent pair whose joined piece scores
highest: exactly SentencePiece's BPE. Unigram models become "t5" (UGM), the only one of llama.cpp's tokenizers that runs
the unigram model's Viterbi search; it also takes the normalizer's character map and its whitespace rules.

Source: llama.cpp conversion/base.py (_create_vocab_sentencepiece), conversion/t5.py (set_vocab).
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from gguf import GGUFValueType

from quantkit.errors import TokenizerError, UnsupportedError
from quantkit.gguf import keyvalues

from . import sentencepiece_model, spm_json
from .files import TokenizerFiles
from .huggingface import added_token_entries, load_sentencepiece
from .roles import SpacePrefix
from .sentencepiece_model import Algorithm, SentencePieceModel
from .tokens import (
    ADDED_SCORE,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Tokens,
    left_out,
    padding,
    say_padded,
    too_large,
)

PADDING_SCORE = -10000.0


def is_sentencepiece(files: TokenizerFiles) -> bool:
    """Whether tokenizer.model is SentencePiece's (Llama 3's original one is a tiktoken table of the same name)."""
    if files.model is None:
        return False
    try:
        sentencepiece_model.parse(files.model.read_bytes())
    except (ValueError, OSError):
        return False
    return True


def is_cut_from_the_left(files: TokenizerFiles) -> bool:
    """Whether tokenizer.model alone declares most of its pieces user-defined (InternLM 3).

    SentencePiece then takes the longest piece from the left, over and over; llama.cpp's SPM cannot.
    """
    if files.model is None or files.tokenizer is not None:
        return False
    model = sentencepiece_model.parse(files.model.read_bytes())
    return 2 * model.types.count(USER_DEFINED) > len(model.pieces)


def user_defined(files: TokenizerFiles) -> dict[int, str]:
    """Id -> text of the pieces that SentencePiece cuts out, where tokenizer.model is the tokenizer."""
    if files.tokenizer is not None or not is_sentencepiece(files):
        return {}
    assert files.model is not None
    model = sentencepiece_model.parse(files.model.read_bytes())
    return {
        number: piece.decode(errors="replace")
        for number, (piece, kind) in enumerate(zip(model.pieces, model.types, strict=True))
        if kind == USER_DEFINED
    }


def load(files: TokenizerFiles, config: Mapping[str, Any], space_prefix: SpacePrefix = SpacePrefix.NEVER) -> Tokens:
    """The vocabulary of tokenizer.model, padded to config's vocab_size, with the checkpoint's added tokens in place.

    Raises TokenizerError (malformed, or larger than the embedding), UnsupportedError (word and character models).
    """
    assert files.model is not None
    load_sentencepiece(files)
    try:
        model = sentencepiece_model.parse(files.model.read_bytes())
    except ValueError as error:
        raise TokenizerError(f"{files.model} is not a SentencePiece model ({error}); download it again") from error
    if model.algorithm not in (Algorithm.BPE, Algorithm.UNIGRAM):
        kind = Algorithm(model.algorithm).name.lower() if model.algorithm in list(Algorithm) else model.algorithm
        raise UnsupportedError(
            f"{files.model} is a SentencePiece {kind} model; llama.cpp tokenizes only bpe and unigram"
        )
    if model.whitespace_as_suffix:
        raise UnsupportedError(f"{files.model} writes spaces as suffixes, which llama.cpp's files cannot say")

    vocab_size = int(config.get("vocab_size") or len(model.pieces))
    if len(model.pieces) > vocab_size:
        raise too_large(len(model.pieces), vocab_size)
    tokens = _table(model, vocab_size)
    _place_added(files, tokens, vocab_size)
    say_padded(tokens, sum(kind != UNUSED for kind in tokens.types) + sum(kind == UNUSED for kind in model.types))
    if model.algorithm == Algorithm.BPE:
        _bpe_spaces(files, model, tokens, space_prefix)
    else:
        _unigram(model, tokens)
    return tokens


def _table(model: SentencePieceModel, vocab_size: int) -> Tokens:
    missing = range(len(model.pieces), vocab_size)
    # llama.cpp's converter knows no user-defined pieces: see _cut_user_defined
    types = [NORMAL if kind == USER_DEFINED else kind for kind in model.types]
    return Tokens(
        model="llama",
        pre="default",
        texts=model.pieces + padding(missing),
        types=types + [UNUSED] * len(missing),
        scores=list(model.scores) + [PADDING_SCORE] * len(missing),
    )


def _place_added(files: TokenizerFiles, tokens: Tokens, vocab_size: int) -> None:
    """added_tokens.json, then tokenizer_config.json, then rows that only tokenizer.json names; none past the end."""
    assert tokens.scores is not None
    dropped: dict[int, str] = {}
    for text, number in files.added.items():
        if number >= vocab_size:
            dropped[number] = text
        else:
            tokens.texts[number], tokens.types[number] = text.encode(), USER_DEFINED
            tokens.scores[number] = ADDED_SCORE
    for number, entry in added_token_entries(files):
        if number >= vocab_size:
            dropped[number] = entry["content"]
        else:
            tokens.place(number, entry["content"], bool(entry.get("special")))
    for entry in (files.tokenizer or {}).get("added_tokens", []):
        number = entry["id"]
        if number < vocab_size and tokens.texts[number] == f"[PAD{number}]".encode():
            tokens.place(number, entry["content"], bool(entry.get("special")))
    if dropped:
        tokens.warnings.append(left_out(dropped, vocab_size))


def _bpe_spaces(files: TokenizerFiles, model: SentencePieceModel, tokens: Tokens, space_prefix: SpacePrefix) -> None:
    """Add the add_space_prefix key, and the warnings about spaces and normalization."""
    prefix = model.add_dummy_prefix
    if files.tokenizer is not None and spm_json.is_sentencepiece_style(files.tokenizer):
        prefix, caveats = spm_json.space_prefix(files)
        tokens.warnings += caveats
    add_space_prefix(tokens, space_prefix, stated_prefix(files), prefix)
    _cut_user_defined(files, model, tokens, prefix)
    if files.tokenizer is None and model.precompiled_charsmap:
        tokens.warnings.append(
            "llama.cpp does not apply this tokenizer's Unicode normalization; unusual characters may differ"
        )
    if files.tokenizer is None and model.remove_extra_whitespaces:
        tokens.warnings.append(
            "llama.cpp does not squeeze repeated spaces as this tokenizer does; such texts will differ"
        )


def _cut_user_defined(files: TokenizerFiles, model: SentencePieceModel, tokens: Tokens, prefix: bool) -> None:
    """Type the user-defined pieces so that llama.cpp, like SentencePiece, cuts them out before merging.

    With a tokenizer.json beside tokenizer.model, these are the pieces that it adds: it merges the others as any piece.
    Without one, these are all user-defined pieces. If a space is put in front of the text, llama.cpp would put one
    after each of them too. Then these are only the pieces that merging cannot make, which stand between messages
    (Baichuan's <reserved_106>). A model that declares most pieces as user-defined is left unchanged: SentencePiece
    matches from the left, llama.cpp longest first.
    """
    numbers = [number for number, kind in enumerate(model.types) if kind == USER_DEFINED]
    changed = [number for number in numbers if tokens.types[number] == NORMAL]
    if files.tokenizer is not None:
        added = {entry["id"] for entry in files.tokenizer.get("added_tokens", [])}
        changed = [number for number in changed if number in added]
    elif 2 * len(numbers) > len(model.pieces):
        tokens.warnings.append(
            "most pieces are user-defined, which SentencePiece takes longest first from the left; llama.cpp merges by "
            "score, so about one text in three gets other ids"
        )
    elif prefix:
        scores = {
            piece.decode(errors="replace"): score for piece, score in zip(model.pieces, model.scores, strict=True)
        }
        changed = [number for number in changed if _is_marker(model.pieces[number].decode(errors="replace"), scores)]
    if not changed or 2 * len(numbers) > len(model.pieces):
        return
    for number in changed:
        tokens.types[number] = USER_DEFINED
        tokens.texts[number] = tokens.texts[number].replace(SPACE.encode(), b" ")
    tokens.warnings.append(
        f"{len(changed)} user-defined pieces are typed so, as SentencePiece cuts them out of the text; "
        "llama.cpp's converter would type them normal"
    )


def _is_marker(piece: str, scores: Mapping[str, float]) -> bool:
    """Whether a piece looks like a mark between messages and cannot be made by merging, best score first."""
    if not (piece.startswith("<") and piece.endswith(">")):
        return False
    parts = list(piece)
    while len(parts) > 1:
        joined = [scores.get(left + right, -math.inf) for left, right in pairwise(parts)]
        best = max(joined)
        if best == -math.inf:
            return True
        at = joined.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return False


def stated_prefix(files: TokenizerFiles) -> bool | None:
    """add_prefix_space of tokenizer_config.json, None where it is not stated."""
    stated = files.config.get("add_prefix_space")
    return stated if isinstance(stated, bool) else None


def add_space_prefix(tokens: Tokens, style: SpacePrefix, stated: bool | None, prefix: bool) -> None:
    """Add the add_space_prefix key where llama.cpp's converter writes it, with the tokenizer's own value `prefix`.

    A warning tells the user if the converter's value differs, or llama.cpp's default (true) without the key.
    """
    written = {
        SpacePrefix.STATED: stated,
        SpacePrefix.STATED_AFTER_TYPES: stated,
        SpacePrefix.MODEL_AFTER_TYPES: prefix,
        SpacePrefix.FALSE_LAST: False,
        SpacePrefix.NEVER: None,
    }[style]
    if written is None and prefix:
        return
    if prefix != (True if written is None else written):
        tokens.warnings.append(
            f"add_space_prefix is {str(prefix).lower()}, as the tokenizer does; llama.cpp's converter would leave it "
            f"{str(not prefix).lower()}"
        )
    _keys_at(tokens, style).append(keyvalues.boolean("tokenizer.ggml.add_space_prefix", prefix))


def add_stated_prefix(tokens: Tokens, style: SpacePrefix, stated: bool | None) -> None:
    """Add the key as tokenizer_config.json states it to a byte-level BPE vocabulary, which does not use it."""
    if stated is not None and style in (SpacePrefix.STATED, SpacePrefix.STATED_AFTER_TYPES):
        _keys_at(tokens, style).append(keyvalues.boolean("tokenizer.ggml.add_space_prefix", stated))


def _keys_at(tokens: Tokens, style: SpacePrefix) -> list[keyvalues.KeyValue]:
    """The keys among which the converter writes add_space_prefix."""
    if style is SpacePrefix.FALSE_LAST:
        return tokens.end
    return tokens.last if style in (SpacePrefix.STATED_AFTER_TYPES, SpacePrefix.MODEL_AFTER_TYPES) else tokens.first


def _unigram(model: SentencePieceModel, tokens: Tokens) -> None:
    tokens.model = "t5"
    tokens.last = [
        keyvalues.boolean("tokenizer.ggml.add_space_prefix", model.add_dummy_prefix),
        keyvalues.boolean("tokenizer.ggml.remove_extra_whitespaces", model.remove_extra_whitespaces),
    ]
    if model.precompiled_charsmap:
        charsmap = list(model.precompiled_charsmap)
        tokens.last.append(keyvalues.array("tokenizer.ggml.precompiled_charsmap", GGUFValueType.UINT8, charsmap))
    # llama.cpp's defaults for this kind are T5's; these are the model's own, and the Llama tokenizers' habit
    ids = {
        "bos": model.bos_id,
        "eos": model.eos_id,
        "unk": model.types.index(UNKNOWN) if UNKNOWN in model.types else -1,
    }
    tokens.ids = {role: number for role, number in ids.items() if number >= 0}
    tokens.adds = {"bos": model.bos_id >= 0, "eos": False}
    tokens.warnings.append(
        "a unigram model is written as llama.cpp's t5 vocabulary, the one that tokenizes it right; "
        "llama.cpp's converter would write a merging vocabulary that does not"
    )
    if model.byte_fallback:
        tokens.warnings.append("llama.cpp's unigram tokenizer has no byte fallback: unknown characters become <unk>")
