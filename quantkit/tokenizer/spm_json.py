"""The vocabulary of a SentencePiece-style tokenizer.json that comes without its tokenizer.model.

Such a file (Llama 2, Mistral, Yi...) is a BPE with byte fallback over text whose spaces were replaced. It has merges
but no scores, and llama.cpp's SPM tokenizer merges by score. SentencePiece's BPE scores fall by one from piece to piece
in the order of training. The merges are listed in that order: the first merge that makes a piece gives its score, up
to a shift.
llama.cpp's converter writes -1000 for every token here (gguf-py LlamaHfVocab), which merges in no useful order:
these bytes differ from its on purpose.
"""

import re
from collections.abc import Mapping
from typing import Any

from quantkit.errors import TokenizerError, UnsupportedError

from .files import TokenizerFiles
from .huggingface import build_tokenizer
from .tokens import BYTE, NORMAL, SPACE, UNKNOWN, UNUSED, Tokens, fit, padding, say_padded

PADDING_SCORE = -10000.0
BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


def is_sentencepiece_style(tokenizer: Mapping[str, Any]) -> bool:
    """Whether tokenizer.json holds a BPE with byte fallback over text with replaced spaces."""
    model = tokenizer.get("model") or {}
    return model.get("type", "BPE") == "BPE" and bool(model.get("byte_fallback"))


def load(files: TokenizerFiles, config: Mapping[str, Any]) -> tuple[Tokens, bool]:
    """The vocabulary with scores from the merges, padded to config's vocab_size, and whether a space is put in front.

    Raises TokenizerError (larger than the embedding, malformed), UnsupportedError (normalizers llama.cpp lacks).
    """
    assert files.tokenizer is not None
    model = files.tokenizer["model"]
    prefix, caveats = space_prefix(files)
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise UnsupportedError(
            f"{files.folder / 'tokenizer.json'} marks word pieces, which llama.cpp's SPM cannot follow"
        )
    tokenizer = build_tokenizer(files)
    added = tokenizer.get_added_tokens_decoder()
    whole = tokenizer.get_vocab(with_added_tokens=True)
    vocab, vocab_size, warnings = fit(whole, added, int(config.get("vocab_size") or 0))

    tokens = Tokens(
        model="llama",
        pre="default",
        texts=padding(range(vocab_size)),
        types=[UNUSED] * vocab_size,
        scores=[PADDING_SCORE] * vocab_size,
        warnings=[
            "scores come from the order of the merges, so the ids match the tokenizer; llama.cpp's converter writes "
            "-1000 for every token here",
            *caveats,
            *warnings,
        ],
    )
    assert tokens.scores is not None
    scores = merge_scores(model.get("merges") or [])
    below = -float(len(scores))
    for text, number in sorted(vocab.items(), key=lambda item: item[1]):
        tokens.texts[number] = text.encode()
        if number in added:
            tokens.place(number, text, added[number].special)
            continue
        tokens.types[number] = BYTE if BYTE_TOKEN.fullmatch(text) else NORMAL
        tokens.scores[number] = 0.0
        if text == model.get("unk_token"):
            tokens.types[number] = UNKNOWN
        elif tokens.types[number] == NORMAL:
            if text in scores:
                tokens.scores[number] = scores[text]
            else:
                tokens.scores[number] = below
                below -= 1.0
    say_padded(tokens, len(vocab))
    return tokens, prefix


def merge_scores(merges: list[Any]) -> dict[str, float]:
    """Piece -> score: minus the number of different pieces that earlier merges make.

    Every way to make one piece must share its score, as SentencePiece's pieces do. Merges are "a b" or ["a", "b"].
    """
    scores: dict[str, float] = {}
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        scores.setdefault(left + right, -float(len(scores)))
    return scores


def space_prefix(files: TokenizerFiles) -> tuple[bool, list[str]]:
    """Whether the tokenizer puts a space before the text, and what llama.cpp cannot follow exactly.

    Raises UnsupportedError when text is changed in a way other than replacing and prepending spaces.
    """
    assert files.tokenizer is not None
    path = files.folder / "tokenizer.json"
    prefix = replaced = False
    for step in _steps(files.tokenizer.get("normalizer"), "normalizers"):
        if step.get("type") == "Prepend" and step.get("prepend") == SPACE:
            prefix = True
        elif step.get("type") == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == SPACE:
            replaced = True
        else:
            raise UnsupportedError(
                f"{path} normalizes text with {step.get('type')}, which llama.cpp's SentencePiece tokenizer does not; "
                "put the checkpoint's tokenizer.model beside it"
            )
    caveats = []
    for step in _steps(files.tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace" and step.get("replacement", SPACE) == SPACE:
            replaced = True
            scheme = step.get("prepend_scheme") or ("always" if step.get("add_prefix_space", True) else "never")
            prefix = prefix or scheme != "never"
            if scheme == "first":
                caveats.append(
                    "llama.cpp puts a space after every special token; this tokenizer only at the start of the text"
                )
        elif not (step.get("type") == "Split" and step.get("pattern") == {"String": " "} and replaced):
            raise UnsupportedError(
                f"{path} splits text with {step.get('type')}, which llama.cpp's SentencePiece tokenizer does not; "
                "put the checkpoint's tokenizer.model beside it"
            )
    if not replaced:
        raise TokenizerError(f"{path} has byte fallback but never replaces spaces by {SPACE!r}; check the file")
    return prefix, caveats


def _steps(node: Any, children: str) -> list[dict[str, Any]]:
    if node is None:
        return []
    if node.get("type") == "Sequence":
        return [step for child in node.get(children, []) for step in _steps(child, children)]
    return [node]
