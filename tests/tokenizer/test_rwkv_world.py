"""RWKV's World tokenizer: ids of the published vocabulary are those of RWKV's own package and of llama.cpp."""

import importlib.util
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import UsageError
from quantkit.tokenizer import PROBE, hf_token_ids, load_vocabulary
from quantkit.tokenizer.rwkv_world import FILE_NAME
from tests.families.expected import write_checkpoint
from tests.helpers.command import quantkit
from tests.helpers.packages import RWKV, fetch_pypi

from .oracle import llama_ids

ALPHABET = (*"tehanr  \n0", "日", "本", "é", "🦙", "\u3000", "\n\n", "User:", "the ", "    ", "\x00", "ж", "return")


@pytest.fixture(scope="module")
def package() -> Path:
    return fetch_pypi(*RWKV[0]) / "rwkv"


def texts() -> list[str]:
    chosen = random.Random(5)
    made = ("".join(chosen.choices(ALPHABET, k=chosen.randrange(1, 40))) for _ in range(300))
    return [*PROBE, Path("README.zh-CN.md").read_text("utf-8"), *made]


def own_tokenizer(package: Path) -> Any:
    spec = importlib.util.spec_from_file_location("rwkv_tokenizer", package / "rwkv_tokenizer.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TRIE_TOKENIZER(str(package / FILE_NAME))


def test_ids_of_the_published_vocabulary_are_rwkvs_own_and_llama_cpps(package: Path, tmp_path: Path) -> None:
    shutil.copy(package / FILE_NAME, tmp_path)
    ours = hf_token_ids(tmp_path, texts())
    theirs = own_tokenizer(package)
    assert ours == [theirs.encode(text) for text in texts()]
    vocabulary = load_vocabulary(tmp_path, {"vocab_size": 65536})
    assert len(vocabulary.tokens) == 65536
    # llama.cpp ends a text that it is given as C does
    whole = [text for text in texts() if "\x00" not in text]
    assert [ids for ids, text in zip(ours, texts(), strict=True) if "\x00" not in text] == llama_ids(
        vocabulary, whole, tmp_path
    )


def test_a_pre_tokenizer_does_not_apply(tmp_path: Path) -> None:
    source = write_checkpoint("rwkv7", tmp_path / "rwkv7")
    with pytest.raises(UsageError, match="has RWKV's tokenizer; leave --pre out"):
        load_vocabulary(source, {"vocab_size": 288}, pre="llama-bpe")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: ["1 not quoted 3", *lines[1:]], "line 1 is not the id 1, a word in quotes and its length"),
        (lambda lines: [*lines[:5], *lines[6:]], "line 6 is not the id 6"),
        (lambda lines: [lines[0].replace(" 1", " 2"), *lines[1:]], "line 1 is not the id 1"),
        (lambda lines: lines[:255], "no token for the byte 0xFF"),
        (lambda lines: [*lines, *(f"{len(lines) + n} 'word{n}' {len(f'word{n}')}" for n in (1, 2))], "vocab_size"),
    ],
)
def test_a_damaged_list_of_words_is_refused(
    change: Callable[[list[str]], list[str]], words: str, tmp_path: Path
) -> None:
    source = write_checkpoint("rwkv7", tmp_path / "rwkv7")
    path = source / FILE_NAME
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    result = quantkit("gguf", source, "-t", "f32", "-o", tmp_path / "out")
    assert result.code == 1 and re.search(words, result.sentence), result.sentence
