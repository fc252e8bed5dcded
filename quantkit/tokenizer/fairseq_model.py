"""XLM-RoBERTa's sentencepiece.bpe.model as the tokenizer.json that transformers makes of it.

The file has a unigram model in spite of its name. Its ids are fairseq's: four special tokens replace the first three
pieces, all others move up by one, and the mask follows the last piece.

Source: transformers' XLMRobertaTokenizer (fairseq_tokens_to_ids).
"""

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

from quantkit.errors import TokenizerError

from . import sentencepiece_model
from .sentencepiece_model import Algorithm
from .tokens import SPACE

FILE_NAME = "sentencepiece.bpe.model"
_FIRST = ("<s>", "<pad>", "</s>", "<unk>")
_REPLACED = (b"<unk>", b"<s>", b"</s>")
_MASK = "<mask>"
SPECIAL = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": _MASK,
}
"""The special tokens that tokenizer_config.json leaves out."""


def tokenizer_json(path: Path) -> str:
    """The tokenizer.json of a sentencepiece.bpe.model.

    Raises:
        TokenizerError: it cannot be read, or its first pieces are not those of XLM-RoBERTa's.
    """
    try:
        model = sentencepiece_model.parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} cannot be read ({error}); download it again") from error
    if model.algorithm != Algorithm.UNIGRAM or tuple(model.pieces[:3]) != _REPLACED:
        raise TokenizerError(
            f"{path} is not XLM-RoBERTa's, a unigram model that begins with <unk>, <s> and </s>; add the"
            " checkpoint's tokenizer.json"
        )
    pieces: list[tuple[str, float]] = [(token, 0.0) for token in _FIRST]
    pieces += [(piece.decode(), score) for piece, score in zip(model.pieces[3:], model.scores[3:], strict=True)]
    pieces.append((_MASK, 0.0))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = [*enumerate(_FIRST), (len(pieces) - 1, _MASK)]
    normalizers: list[dict[str, Any]] = []
    if model.precompiled_charsmap:
        charsmap = b64encode(model.precompiled_charsmap).decode()
        normalizers.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if model.remove_extra_whitespaces:
        normalizers.append({"type": "Strip", "strip_left": False, "strip_right": True})
        normalizers.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": SPACE})
    scheme = "always" if model.add_dummy_prefix else "never"
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": True}
    whole = {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": token, **flags, "lstrip": token == _MASK} for number, token in special
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if normalizers else None,
        "pre_tokenizer": metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_special("<s>"), _text("A"), _special("</s>")],
            "pair": [_special("<s>"), _text("A"), _special("</s>"), _special("</s>"), _text("B"), _special("</s>")],
            "special_tokens": {
                token: {"id": token, "ids": [_FIRST.index(token)], "tokens": [token]} for token in ("<s>", "</s>")
            },
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": _FIRST.index("<unk>"), "vocab": pieces},
    }
    return json.dumps(whole, ensure_ascii=False)


def _special(token: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": 0}}


def _text(name: str) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": 0}}
