"""PLaMo's tokenizers: ids of the checkpoint's files are llama.cpp's, for any text; damaged files are refused."""

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quantkit.errors import UnsupportedError
from quantkit.llamacpp.token_ids import vocab_token_ids
from quantkit.tokenizer import PROBE, hf_token_ids
from tests.families.expected import write_checkpoint
from tests.families.models import VOCAB
from tests.helpers.command import quantkit
from tests.helpers.tiny_tokenizers import write_plamo

WITHOUT_LLAMA_CPP = """
import importlib.util, json, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "llama_cpp" else find(name, *rest)
from quantkit.llamacpp.child import vocab_tokens
print(json.dumps(vocab_tokens({"model": sys.argv[1], "texts": json.loads(sys.stdin.read())})))
"""
ALPHABET = (*"tehanr  \n0", "日", "本", "é", "🦙", "\ufeff", "\u3000", "<|plamo:", "<|plamo:eos|>", "|>", "aaaa", "   ")


def texts() -> list[str]:
    chosen = random.Random(5)
    return [*PROBE, *("".join(chosen.choices(ALPHABET, k=chosen.randrange(1, 24))) for _ in range(300))]


def written(folder: Path, kind: str) -> Path:
    """The GGUF of a tiny PLaMo 3 with the tokenizer `kind`."""
    source = write_checkpoint("plamo3", folder / "plamo3")
    write_plamo(source, VOCAB, kind)
    result = quantkit("gguf", source, "-t", "f32", "-o", folder)
    assert result.code == 0, result.stderr
    return next(folder.rglob("*.gguf"))


def test_ids_of_plamo_2_are_llama_cpps(tmp_path: Path) -> None:
    model = written(tmp_path, "Plamo2Tokenizer")
    assert hf_token_ids(tmp_path / "plamo3", texts()) == vocab_token_ids(model, texts())


def test_ids_of_plamo_3_are_those_of_the_newest_llama_cpp(tmp_path: Path) -> None:
    """The installed build does not know this tokenizer, the wheel does."""
    model = written(tmp_path, "Plamo3Tokenizer")
    command = [sys.executable, "-c", WITHOUT_LLAMA_CPP, str(model)]
    done = subprocess.run(command, input=json.dumps(texts()), capture_output=True, text=True, check=True)
    assert hf_token_ids(tmp_path / "plamo3", texts()) == json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: ["not json", *lines], "line 1 is not JSON"),
        (lambda lines: ['{"a": 1}', *lines], r"line 1 is not \[piece, score, type\]"),
        (lambda lines: [line for line in lines if "<0x41>" not in line], "no token for the byte <0x41>"),
        (lambda lines: [line for line in lines if "plamo:tag" not in line], r"no piece '<\|plamo:tag\|>'"),
        (lambda lines: [*lines, *(f'["piece{n}", 0.0, "NORMAL"]' for n in range(9))], "vocab_size"),
    ],
)
def test_a_damaged_list_of_pieces_is_refused(
    change: Callable[[list[str]], list[str]], words: str, tmp_path: Path
) -> None:
    source = write_checkpoint("plamo3", tmp_path / "plamo3")
    path = source / "tokenizer.jsonl"
    path.write_text("\n".join(change(path.read_text().splitlines())))
    result = quantkit("gguf", source, "-t", "f32", "-o", tmp_path / "out")
    assert result.code == 1 and re.search(words, result.sentence), result.sentence


def test_another_tokenizer_class_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint("plamo3", tmp_path / "plamo3")
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "Plamo9Tokenizer"}))
    with pytest.raises(UnsupportedError, match="tokenizer_class is 'Plamo9Tokenizer'"):
        hf_token_ids(source, ["text"])
