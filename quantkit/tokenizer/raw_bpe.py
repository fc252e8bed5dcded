"""The vocabulary of a BPE that merges raw UTF-8 text with a token for each byte. Spaces are written as U+2581.

llama.cpp runs such a tokenizer by its merges under a name of tokenizer.ggml.model that the family gives. Other
families' tokenizers of the same shape become SentencePiece vocabularies, which merge by score (spm_json.py).

Source: llama.cpp conversion/gemma.py (set_vocab), gguf-py/gguf/vocab.py (LlamaHfVocab), src/llama-vocab.cpp.
"""

from collections.abc import Mapping
from typing import Any

from gguf import GGUFValueType

from quantkit.errors import TokenizerError, UnsupportedError
from quantkit.gguf import keyvalues

from . import bytelevel, spm_json
from .files import TokenizerFiles
from .huggingface import build_tokenizer
from .roles import RawBpe
from .tokens import ADDED_SCORE, BYTE, NORMAL, UNUSED, USER_DEFINED, Tokens, fit, padding, say_padded


def load(files: TokenizerFiles, config: Mapping[str, Any], kind: RawBpe) -> Tokens:
    """The vocabulary with its merges, padded to config's vocab_size; every score is the converter's -1000.

    Raises:
        TokenizerError: the tokenizer has no merges, or is larger than the embedding.
        UnsupportedError: it puts a space in front of the text, or normalizes text as llama.cpp does not.
    """
    path = files.folder / "tokenizer.json"
    if spm_json.space_prefix(files)[0]:
        raise UnsupportedError(
            f"{path} puts a space in front of the text, which llama.cpp's {kind.model} tokenizer does not; "
            "use the tokenizer.json that the model was published with"
        )
    merges = bytelevel.merges(files)
    if not merges:
        raise TokenizerError(
            f"{path} has no merges, and llama.cpp's {kind.model} tokenizer needs them; download it again"
        )
    tokenizer = build_tokenizer(files)
    added = tokenizer.get_added_tokens_decoder()
    whole = tokenizer.get_vocab(with_added_tokens=True)
    vocab, vocab_size, warnings = fit(whole, added, int(config.get("vocab_size") or 0))
    tokens = Tokens(
        kind.model,
        pre=None,
        texts=padding(range(vocab_size)),
        types=[UNUSED] * vocab_size,
        scores=[ADDED_SCORE] * vocab_size,
        last=[keyvalues.array("tokenizer.ggml.merges", GGUFValueType.STRING, merges)],
        end=[keyvalues.boolean("tokenizer.ggml.add_space_prefix", False)],
        warnings=warnings,
    )
    for text, number in vocab.items():
        if number in added:
            tokens.place(number, text, added[number].special)
        else:
            tokens.texts[number] = text.encode()
            tokens.types[number] = BYTE if spm_json.BYTE_TOKEN.fullmatch(text) else NORMAL
        if text in kind.visible:
            tokens.types[number] = USER_DEFINED
    say_padded(tokens, len(vocab))
    return tokens
