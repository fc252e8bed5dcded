"""BERT's WordPiece tokenizers, from tokenizer.json or vocab.txt, each read by the real llama.cpp."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from quantkit.errors import TokenizerError, UnsupportedError, UsageError
from quantkit.tokenizer import PROBE, TokenRoles, differences, hf_token_ids, load_vocabulary, unlike_texts
from tests.helpers.tiny_tokenizers import CORPUS, write_wordpiece

from .oracle import llama_ids

TEXTS = [*PROBE, *CORPUS.splitlines(), "[CLS] a quick fox [SEP]", "Über-größe, naïve CAFÉ", "a" * 130]
SIZE = 400


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("files", ["json", "vocab"])
def test_ids_are_those_of_tokenizers(files: str, lowercase: bool, tmp_path: Path) -> None:
    write_wordpiece(tmp_path, SIZE, lowercase=lowercase)
    truth = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    if files == "vocab":
        (tmp_path / "tokenizer.json").unlink()
    vocabulary = load_vocabulary(tmp_path, {"vocab_size": SIZE}, roles=TokenRoles(token_types=True))
    assert (vocabulary.model, vocabulary.pre) == ("bert", "default")
    expected = [truth.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert hf_token_ids(tmp_path, TEXTS) == expected
    ids = llama_ids(vocabulary, TEXTS, tmp_path)
    different = differences(tmp_path, vocabulary.keys, TEXTS, ids, expected)
    assert [item for item in different if item.reason is None] == []
    assert len(different) <= 3
    whole = llama_ids(vocabulary, ["a quick fox"], tmp_path, add_special=True)
    assert whole == [truth.encode("a quick fox").ids]


def test_equal_ids_are_not_for_lack_of_words(tmp_path: Path) -> None:
    write_wordpiece(tmp_path, SIZE)
    ids = hf_token_ids(tmp_path, TEXTS)
    assert len({number for text in ids for number in text}) > 100


def test_a_text_with_an_unknown_character_is_not_compared_without_llama_cpp(tmp_path: Path) -> None:
    write_wordpiece(tmp_path, SIZE)
    vocabulary = load_vocabulary(tmp_path, {"vocab_size": SIZE}, roles=TokenRoles(token_types=True))
    unknown = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).token_to_id("[UNK]")
    assert any(unknown in ids for ids in hf_token_ids(tmp_path, TEXTS))
    assert unlike_texts(tmp_path, vocabulary.keys, TEXTS) == []


def changed(folder: Path, part: str, value: Any) -> Path:
    write_wordpiece(folder, SIZE)
    source = json.loads((folder / "tokenizer.json").read_text())
    source[part] = value
    (folder / "tokenizer.json").write_text(json.dumps(source))
    return folder


def test_what_llama_cpp_does_not_follow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="splits text with WhitespaceSplit"):
        load_vocabulary(changed(tmp_path, "pre_tokenizer", {"type": "WhitespaceSplit"}), {})
    with pytest.raises(UnsupportedError, match="normalizes text with NFKC"):
        load_vocabulary(changed(tmp_path, "normalizer", {"type": "NFKC"}), {})
    write_wordpiece(tmp_path, SIZE)
    with pytest.raises(UsageError, match="--pre smollm does not apply"):
        load_vocabulary(tmp_path, {}, pre="smollm")


def test_a_list_of_words_that_is_not_berts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("one\ntwo\n")
    with pytest.raises(TokenizerError, match=r"has no token \[PAD\]"):
        load_vocabulary(tmp_path, {})
