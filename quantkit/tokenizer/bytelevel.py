"""The vocabulary of a byte-level BPE tokenizer (GPT-2's kind: Llama 3, SmolLM, Qwen...): tokens, types, merges.

Source: llama.cpp conversion/base.py (get_vocab_base, _set_vocab_gpt2), gguf-py/gguf/vocab.py (merges).
"""

import json
from collections.abc import Mapping
from typing import Any

from gguf import GGUFValueType

from quantkit.errors import TokenizerError, UnsupportedError
from quantkit.gguf import keyvalues
from quantkit.units import listed

from . import pretokenizers
from .files import TokenizerFiles, read_text
from .huggingface import build_tokenizer, encoded
from .probe import PROBE
from .tokens import NORMAL, UNUSED, Tokens, fit, padded, say_padded


def load(files: TokenizerFiles, config: Mapping[str, Any], pre: str | None) -> Tokens:
    """The byte-level vocabulary, padded to config's vocab_size; `pre` is the user's --pre.

    Raises TokenizerError (larger than the embedding, malformed merges), UnsupportedError (not byte-level, pre-tokenizer
    not recognised).
    """
    tokenizer = build_tokenizer(files)
    source = files.tokenizer or json.loads(tokenizer.to_str())
    where = str(files.ranks or files.folder / ("tokenizer.json" if files.tokenizer else "vocab.json"))
    _require_byte_level(source, where)
    added = tokenizer.get_added_tokens_decoder()
    whole = tokenizer.get_vocab(with_added_tokens=True)
    vocab, vocab_size, warnings = fit(whole, added, int(config.get("vocab_size") or 0))

    recognised = (
        pretokenizers.Recognised(pre, "given")
        if pre
        else pretokenizers.recognise(tokenizer, source, files.config, where)
    )
    tokens = Tokens(
        "gpt2",
        recognised.name,
        texts=padded(vocab_size, vocab.values()),
        types=[UNUSED] * vocab_size,
        warnings=warnings,
        probe_ids=encoded(tokenizer, PROBE) if files.ranks is None else None,
    )
    for text, number in vocab.items():
        if number in added:
            # llama.cpp finds added tokens in the raw text, so those kept out of normalization are spelled out
            if not added[number].normalized:
                ids = tokenizer.encode(text, add_special_tokens=False).ids
                text = tokenizer.decode(ids, skip_special_tokens=False)
            tokens.place(number, text, added[number].special)
        else:
            tokens.texts[number], tokens.types[number] = text.encode(), NORMAL
    say_padded(tokens, len(vocab))
    pairs = merges(files)
    if pairs:
        tokens.last = [keyvalues.array("tokenizer.ggml.merges", GGUFValueType.STRING, pairs)]
    else:
        raise TokenizerError(
            f"{where} has no merges, which llama.cpp needs for a byte-level BPE vocabulary; take a tokenizer.json with"
            " merges"
        )
    if recognised.by_hash:
        tokens.warnings.append(
            f"the pre-tokenizer is {recognised.name}, {recognised.why}; llama.cpp's converter would write "
            f"{recognised.by_hash}"
        )
    if recognised.how != "hash" and pretokenizers.adds_bos(recognised.name):
        tokens.adds = {"bos": False}
    normalizers = pretokenizers.normalizers(source.get("normalizer"))
    if normalizers:
        tokens.warnings.append(
            f"llama.cpp does not apply this tokenizer's {listed(normalizers)} normalization: texts it changes "
            "get other ids"
        )
    return tokens


def _require_byte_level(source: dict[str, Any], where: str) -> None:
    model = source.get("model") or {}
    kind = model.get("type", "BPE")
    decoder = source.get("decoder") or {}
    parts = [decoder, *decoder.get("decoders", [])]
    if kind != "BPE":
        hint = (
            "put the checkpoint's tokenizer.model beside it"
            if kind == "Unigram"
            else "only BPE and SentencePiece are handled"
        )
        raise UnsupportedError(
            f"{where} holds a {kind} tokenizer, which quantkit cannot write to GGUF from there; {hint}"
        )
    if not any(part.get("type") == "ByteLevel" for part in parts):
        raise UnsupportedError(
            f"{where} holds a BPE tokenizer that is neither byte-level nor SentencePiece-style (byte_fallback); "
            "llama.cpp has no tokenizer for it"
        )
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise UnsupportedError(
            f"{where} marks word pieces with a prefix or suffix, which llama.cpp's BPE does not know"
        )


def merges(files: TokenizerFiles) -> list[str]:
    """The merges as "a b"; a space inside a part is spelled as byte-level BPE spells it, with U+0120."""
    listed = ((files.tokenizer or {}).get("model") or {}).get("merges")
    if not listed:
        return _merges_txt(files)
    if isinstance(listed[0], str):
        return list(listed)
    pairs = [" ".join(pair) for pair in listed]
    if "".join(pairs).count(" ") == len(pairs):
        return pairs
    return [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in listed]


def _merges_txt(files: TokenizerFiles) -> list[str]:
    lines = (read_text(files.merges) or "").split("\n") if files.merges else []
    if lines and lines[0].startswith("#"):
        lines = lines[1:]
    pairs = [line.split() for line in lines]
    return [" ".join(pair) for pair in pairs if len(pair) == 2]
