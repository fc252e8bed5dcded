"""Remembered ids are those of the tokenizer that is asked."""

import os
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from quantkit.imatrix.file import load_imatrix
from quantkit.texts import tokens
from quantkit.texts.samples import DEFAULT_TEXT, load_documents
from quantkit.tokenizer.files import read
from tests.helpers.command import quantkit, quantkit_forked
from tests.helpers.tiny import tiny_llama
from tests.helpers.tiny_tokenizers import write_byte_level_bpe
from tests.helpers.token_memory import FOLDER


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


def test_a_command_in_a_fork_takes_the_ids_of_this_process(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model", variant="llama3", hidden=64, intermediate=96, layers=1, vocab=400)
    shared = Path(os.environ[FOLDER])
    words = ("imatrix", model, "--samples", "8", "--seq-len", "16", "-o")
    here = quantkit(*words, tmp_path / "here.gguf")
    files = {path.name for path in shared.iterdir()}
    forked = quantkit_forked(*words, tmp_path / "forked.gguf")
    assert (here.code, forked.code) == (0, 0), forked.stderr
    assert {path.name for path in shared.iterdir()} == files and len(files) > 10
    first, second = (load_imatrix(tmp_path / f"{name}.gguf") for name in ("here", "forked"))
    assert all(np.array_equal(value, second.values[name]) for name, value in first.values.items())
