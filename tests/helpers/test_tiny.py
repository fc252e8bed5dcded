"""The tiny checkpoints themselves: what every other test stands on."""

from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer

from tests.helpers.tiny import VARIANTS, tiny_llama

TEXT = "The lazy dog 2024, où êtes-vous?  日本語 🦙\n\tx"


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for variant in ("llama3", "mistral"):
        one, two = (tiny_llama(tmp_path / f"{variant}{i}", variant=variant) for i in (1, 2))
        assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_tokenizer_has_the_asked_size_and_loses_nothing(variant: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_llama(tmp_path, variant=variant, layers=1) / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 768
    assert tokenizer.decode(tokenizer.encode(TEXT, add_special_tokens=False).ids) == TEXT


@pytest.mark.parametrize("variant", ["llama2", "yi"])
def test_both_forms_of_a_sentencepiece_tokenizer_agree(variant: str, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, variant=variant, layers=1)
    slow = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert fast.encode(TEXT, add_special_tokens=False).ids == slow.encode(TEXT)
