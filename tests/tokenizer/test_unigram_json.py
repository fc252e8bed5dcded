"""XLM-RoBERTa's unigram tokenizer.json, read by the real llama.cpp."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from quantkit.errors import UnsupportedError
from quantkit.tokenizer import PROBE, TokenRoles, differences, load_vocabulary
from tests.helpers.tiny_tokenizers import CORPUS, write_unigram_json

from .oracle import llama_ids

ROLES = TokenRoles(token_types=True)
TEXTS = [*PROBE, *CORPUS.splitlines(), "ｆｕｌｌ ｗｉｄｔｈ  quick"]


def test_ids_are_those_of_tokenizers(tmp_path: Path) -> None:
    write_unigram_json(tmp_path, 288)
    truth = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    vocabulary = load_vocabulary(tmp_path, {"vocab_size": 288}, roles=ROLES)
    assert vocabulary.model == "t5"
    expected = [truth.encode(text, add_special_tokens=False).ids for text in TEXTS]
    different = differences(tmp_path, vocabulary.keys, TEXTS, llama_ids(vocabulary, TEXTS, tmp_path), expected)
    assert [item for item in different if item.reason is None] == []
    assert len(different) <= 3
    assert llama_ids(vocabulary, ["quick"], tmp_path, add_special=True) == [truth.encode("quick").ids]


def test_another_split_is_refused(tmp_path: Path) -> None:
    write_unigram_json(tmp_path, 288)
    source = json.loads((tmp_path / "tokenizer.json").read_text())
    source["pre_tokenizer"] = {"type": "Punctuation"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(source))
    with pytest.raises(UnsupportedError, match="splits text with Punctuation"):
        load_vocabulary(tmp_path, {}, roles=ROLES)
