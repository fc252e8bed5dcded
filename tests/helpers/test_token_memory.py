"""Remembered ids are those of the tokenizer that is asked."""

from pathlib import Path

from tokenizers import Tokenizer

from quantkit.texts import tokens
from quantkit.texts.samples import DEFAULT_TEXT, load_documents
from quantkit.tokenizer.files import read
from tests.helpers.tiny_tokenizers import write_byte_level_bpe


def test_two_tokenizers_give_each_its_own_ids_however_often_they_are_asked(tmp_path: Path) -> None:
    texts = [str(document) for document in load_documents(None, offline=True)[0][:8]]
    assert DEFAULT_TEXT.exists() and sum(map(len, texts)) > 10_000
    folder, lengths = tmp_path / "model", set()
    folder.mkdir()
    for size in (400, 600, 400):
        write_byte_level_bpe(folder, "llama3", size)
        expected = Tokenizer.from_file(str(folder / "tokenizer.json"))
        for asked in (texts, texts[1:]):
            ids = [expected.encode(text, add_special_tokens=False).ids for text in asked]
            assert [list(some) for some in tokens.encoder(read(folder))(asked)] == ids
            lengths.add(sum(map(len, ids)))
    assert len(lengths) == 4
