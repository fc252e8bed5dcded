"""Why llama.cpp's ids can differ from the checkpoint's tokenizer although the vocabulary is right.

A GGUF file cannot express some rules of tokenizers. A check that compares ids must distinguish them from a mistake.
Each reason here is established from the checkpoint's files for one text, never assumed.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.gguf.keyvalues import KeyValue

from . import spm
from .files import TokenizerFiles, read
from .huggingface import added_token_entries, build_tokenizer, hf_token_ids, sentencepiece_ids
from .tokens import BYTE, CONTROL, SPACE

# llama.cpp's split for these stands in for the tokenizer's with letters only, so combining marks end a word
_WITHOUT_MARKS = {"tekken", "gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"}
# texts that llama.cpp makes control tokens whatever their type (src/llama-vocab.cpp, llama_vocab::impl::load)
_CONTROL_LOOKING = (
    "</s>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|eom_id|>",
    "<EOT>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
)
# max_input_chars_per_word of BERT's tokenizers
_LONGEST_WORD = 100


@dataclass(frozen=True)
class Difference:
    """One text that two tokenizers read differently; `reason` is None when nothing known explains it."""

    text: str
    ids: list[int]
    expected: list[int]
    reason: str | None


def differences(
    folder: Path,
    keys: Sequence[KeyValue],
    texts: Sequence[str],
    ids: Sequence[list[int]],
    expected: Sequence[list[int]] | None = None,
) -> list[Difference]:
    """Compare llama.cpp's `ids` of `texts` with the checkpoint's own tokenizer's, and explain what can be explained.

    `keys` are the tokenizer.* keys of the file that gave the ids. `expected`: that tokenizer's ids, if known already.
    Raises what hf_token_ids raises.
    """
    expected = hf_token_ids(folder, texts) if expected is None else expected
    different = [
        (text, list(got), list(want))
        for text, got, want in zip(texts, ids, expected, strict=True)
        if list(got) != list(want)
    ]
    if not different:
        return []
    files = read(folder)
    return [Difference(text, got, want, _reason(files, keys, text, got, want)) for text, got, want in different]


def _reason(
    files: TokenizerFiles, keys: Sequence[KeyValue], text: str, got: list[int], expected: list[int]
) -> str | None:
    values = {key.key: key.value for key in keys}
    rows = values.get("tokenizer.ggml.tokens")
    if isinstance(rows, list) and any(number >= len(rows) for number in expected):
        return "the tokenizer gives it an id that has no row in the embedding"
    looking = next((marker for marker in _CONTROL_LOOKING if marker in text and _is_plain(values, marker)), None)
    if looking:
        return f"{looking} is an ordinary token here, and llama.cpp makes every token of that name a control token"
    types = values.get("tokenizer.ggml.token_type")
    if values.get("tokenizer.ggml.model") == "t5" and isinstance(types, list):
        if any(types[number] == BYTE for number in expected):
            return "llama.cpp's unigram tokenizer has no byte fallback for characters outside the vocabulary"
        if not text.strip(" "):
            return "llama.cpp's unigram tokenizer puts no space before a text of spaces only"
    if values.get("tokenizer.ggml.model") == "bert":
        return _wordpiece_reason(values, text)
    if spm.is_sentencepiece(files) and spm.is_cut_from_the_left(files):
        return "SentencePiece cuts this model's user-defined pieces out from the left, and llama.cpp merges by score"
    if any(pattern.search(text) for pattern in _space_eaters(files)):
        return "a special token takes the white space beside it, which a GGUF file cannot say"
    cut = spm.user_defined(files)
    if cut and values.get("tokenizer.ggml.add_space_prefix") is not False and any(number in cut for number in expected):
        return "llama.cpp puts a space after each piece it cuts out of the text, and SentencePiece only at its start"
    if files.tokenizer is None:
        return None
    if spm.is_sentencepiece(files) and got == sentencepiece_ids(files, [text])[0]:
        return "tokenizer.json and tokenizer.model disagree on it, and the file follows tokenizer.model"
    if values.get("tokenizer.ggml.model") == "gpt2":
        normalizer = build_tokenizer(files).normalizer
        if normalizer is not None and normalizer.normalize_str(text) != text:
            return "the tokenizer normalizes it first, which llama.cpp does not do"
        marks = any(unicodedata.category(character).startswith("M") for character in text)
        if marks and values.get("tokenizer.ggml.pre") in _WITHOUT_MARKS:
            return f"llama.cpp's split for {values['tokenizer.ggml.pre']} ends a word at a combining mark"
    elif "Metaspace" in str(files.tokenizer.get("pre_tokenizer")) and text.startswith((" ", SPACE)):
        return "the tokenizer puts no space before a text that begins with one, and llama.cpp always does"
    return None


def _wordpiece_reason(values: Mapping[str, object], text: str) -> str | None:
    """What llama.cpp's WordPiece tokenizer does not do as BERT's normalizer and model do."""
    lower = values.get("tokenizer.ggml.normalizer.lowercase", True)
    if values.get("tokenizer.ggml.normalizer.strip_accents", lower):
        if any("\uac00" <= character <= "\ud7a3" for character in text):
            return "the tokenizer decomposes Hangul syllables, and llama.cpp does not"
        if any(unicodedata.category(character) in ("Mc", "Me") for character in unicodedata.normalize("NFD", text)):
            return "llama.cpp removes every combining mark with the accents, the tokenizer only those without width"
    if any(len(word) > _LONGEST_WORD for word in text.split()):
        return f"the tokenizer makes a word of more than {_LONGEST_WORD} characters unknown, and llama.cpp does not"
    return None


def _space_eaters(files: TokenizerFiles) -> list[re.Pattern[str]]:
    """Each added token with lstrip or rstrip, with white space on that side (Phi-3's; llama.cpp knows them by name)."""
    entries = {entry["content"]: entry for entry in (files.tokenizer or {}).get("added_tokens") or []}
    entries |= {entry["content"]: entry for _, entry in added_token_entries(files)}
    patterns = [rf"\s{re.escape(text)}" for text, entry in entries.items() if entry.get("lstrip")]
    patterns += [rf"{re.escape(text)}\s" for text, entry in entries.items() if entry.get("rstrip")]
    return [re.compile(pattern) for pattern in patterns]


def _is_plain(values: dict[str, object], marker: str) -> bool:
    """Whether the vocabulary has this text as a token that is not typed as control."""
    texts, types = values.get("tokenizer.ggml.tokens"), values.get("tokenizer.ggml.token_type")
    if not isinstance(texts, list) or not isinstance(types, list) or marker.encode() not in texts:
        return False
    return bool(types[texts.index(marker.encode())] != CONTROL)
