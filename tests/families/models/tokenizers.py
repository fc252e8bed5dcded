"""The tokenizer files of the tiny models: VOCAB tokens, in the kind of files that the family publishes."""

from pathlib import Path

from tests.families.models.case import VOCAB
from tests.helpers.tiny_tokenizers import (
    write_byte_level_bpe,
    write_plamo,
    write_raw_bpe,
    write_sentencepiece,
    write_t5,
    write_unigram_json,
    write_wordpiece,
    write_world,
)


def write_tokenizer(folder: Path, style: str) -> None:
    """Write a tokenizer: `few-letters` and `gemma` are SentencePiece, `raw` merges text, `wordpiece` is BERT's,
    `unigram` XLM-RoBERTa's, `t5` T5's, `plamo` PLaMo's, `world` RWKV's.

    The others are byte-level.
    """
    if style in ("smollm", "glm", "glm-4.5", "dots3", "solar"):
        write_byte_level_bpe(folder, style, VOCAB)
    elif style == "wordpiece":
        write_wordpiece(folder, VOCAB)
    elif style == "unigram":
        write_unigram_json(folder, VOCAB)
    elif style == "t5":
        write_t5(folder, VOCAB)
    elif style == "plamo":
        write_plamo(folder, VOCAB, "Plamo2Tokenizer")
    elif style == "world":
        write_world(folder, VOCAB)
    elif style == "raw":
        write_raw_bpe(folder, VOCAB)
    else:
        write_sentencepiece(folder, style, VOCAB, model=True, json_too=True, unigram=False)
