"""Each bad input is one sentence that says what is wrong, where, and what to do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantkit.errors import QuantkitError, TokenizerError, UnsupportedError
from quantkit.tokenizer import load_vocabulary
from tests.helpers.examples import examples
from tests.helpers.tiny_tokenizers import write_byte_level_bpe, write_sentencepiece, write_wordpiece

CONFIG = {"vocab_size": 600}


def bpe(folder: Path) -> Path:
    write_byte_level_bpe(folder, "llama3", 600)
    return folder


def spm(folder: Path, *, model: bool = True, json_too: bool = False) -> Path:
    write_sentencepiece(folder, "llama", 600, model=model, json_too=json_too, unigram=False)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], Any], name: str = "tokenizer.json") -> Path:
    source = json.loads((folder / name).read_text())
    change(source)
    (folder / name).write_text(json.dumps(source))
    return folder


def refusal(folder: Path, config: dict[str, Any] | None = None) -> str:
    with pytest.raises((TokenizerError, UnsupportedError)) as caught:
        load_vocabulary(folder, config or CONFIG)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    assert "has no tokenizer: expected tokenizer.json" in refusal(tmp_path)
    (tmp_path / "tekken.json").write_text("{}")
    assert "tekken.json alone is not supported" in refusal(tmp_path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "missing")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["", "{", "[1]", '"text"', "\x00\x01"])
def test_files_that_are_no_json_objects(name: str, text: str, tmp_path: Path) -> None:
    (bpe(tmp_path) / name).write_text(text)
    assert str(tmp_path / name) in refusal(tmp_path)


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    (bpe(tmp_path) / "tokenizer.json").write_bytes(b"\xff\xfe{}")
    assert "UTF-8" in refusal(tmp_path)


@pytest.mark.parametrize("make", [bpe, spm, lambda folder: spm(folder, model=False, json_too=True)])
def test_a_tokenizer_larger_than_the_embedding(make: Callable[[Path], Path], tmp_path: Path) -> None:
    message = refusal(make(tmp_path), {"vocab_size": 512})
    assert "600 tokens" in message
    assert "is 512" in message
    assert "resize the embedding to 600 rows" in message


@pytest.mark.parametrize("make", [bpe, spm, lambda folder: spm(folder, model=False, json_too=True)])
@pytest.mark.parametrize("name", ["vocab_size", "padded_vocab_size"])
@pytest.mark.parametrize("rows", [(1 << 22) + 1, 2**63, 1e300, float("inf")])
def test_an_embedding_larger_than_any_model_is_refused_before_a_table_is_made(
    make: Callable[[Path], Path], name: str, rows: float, tmp_path: Path
) -> None:
    for config in ({name: rows}, {"text_config": {name: rows}}):
        assert f"{name} is {rows:.6g}, but at most 4194304 is supported" in refusal(make(tmp_path), config)


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"])
def test_a_tokenizer_model_that_is_none(data: bytes, tmp_path: Path) -> None:
    (spm(tmp_path) / "tokenizer.model").write_bytes(data)
    assert "is not a SentencePiece model" in refusal(tmp_path)


def test_a_truncated_tokenizer_model(tmp_path: Path) -> None:
    path = spm(tmp_path) / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:1000])
    assert "is not a SentencePiece model" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (b"", "byte 0 has no token"),
        (b"IQ== 0\nnot base64!", "line 2 has no rank"),
        (b"I?== 0\n", "is not a table"),
        (b"IQ== 0\nIg== 2\n", "not 0, 1, 2"),
        (b"\xff\xfe 0\n", "is not a table"),
    ],
)
def test_a_table_of_ranks_that_is_none(table: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(table)
    message = refusal(tmp_path)
    assert str(tmp_path / "qwen.tiktoken") in message
    assert reason in message


def test_a_table_of_ranks_of_another_family_is_named(tmp_path: Path) -> None:
    (tmp_path / "other.tiktoken").write_bytes(b"IQ== 0\n")
    assert "other.tiktoken says neither how text is split" in refusal(tmp_path)


def test_a_tiktoken_table_named_tokenizer_model_gives_way_to_tokenizer_json(tmp_path: Path) -> None:
    (bpe(tmp_path) / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    assert load_vocabulary(tmp_path, CONFIG).model == "gpt2"


@pytest.mark.parametrize("kind", ["WordPiece", "WordLevel"])
def test_other_kinds_of_tokenizer_are_named(kind: str, tmp_path: Path) -> None:
    def change(source: dict[str, Any]) -> None:
        source["model"] = {"type": kind, "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"}
        source["model"] |= (
            {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100} if kind == "WordPiece" else {}
        )
        source["added_tokens"] = []

    assert kind in refusal(edit(bpe(tmp_path), change))


def test_word_models_of_sentencepiece_are_refused(tmp_path: Path) -> None:
    from .test_trained_tokenizers import train

    assert "SentencePiece word model" in refusal(train(tmp_path, model_type="word"))


def test_merges_that_name_no_token(tmp_path: Path) -> None:
    message = refusal(edit(bpe(tmp_path), lambda source: source["model"]["merges"].append(["zz", "qq"])))
    assert "tokenizer.json is not a loadable tokenizer" in message


def test_an_unknown_token_that_the_vocabulary_lacks(tmp_path: Path) -> None:
    write_wordpiece(tmp_path, 300)

    def without(source: dict[str, Any]) -> None:
        del source["model"]["vocab"]["[UNK]"]
        source["added_tokens"] = [token for token in source["added_tokens"] if token["content"] != "[UNK]"]

    message = refusal(edit(tmp_path, without), {"vocab_size": 300})
    assert "the tokenizers library fails on the tokenizer files in" in message and "[UNK]" in message


def test_a_byte_level_tokenizer_without_merges(tmp_path: Path) -> None:
    message = refusal(edit(bpe(tmp_path), lambda source: source["model"].update(merges=[])))
    assert "no merges" in message


def test_two_ids_with_one_text(tmp_path: Path) -> None:
    decoder = {"5": {"content": "same", "special": True}, "6": {"content": "same", "special": True}}
    edit(spm(tmp_path), lambda source: source.update(added_tokens_decoder=decoder), "tokenizer_config.json")
    assert "tokens 5 and 6 have the same text 'same'" in refusal(tmp_path)


def test_an_added_id_that_is_no_number(tmp_path: Path) -> None:
    (spm(tmp_path) / "added_tokens.json").write_text('{"x": "7"}')
    assert "gives token 'x' the id '7'" in refusal(tmp_path)


def test_a_normalizer_that_sentencepiece_style_cannot_say(tmp_path: Path) -> None:
    folder = edit(
        spm(tmp_path, model=False, json_too=True),
        lambda source: source["normalizer"]["normalizers"].append({"type": "NFKC"}),
    )
    assert "normalizes text with NFKC" in refusal(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 700) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
PATHS = st.sampled_from(
    [
        ("tokenizer.json", ("added_tokens",)),
        ("tokenizer.json", ("normalizer",)),
        ("tokenizer.json", ("pre_tokenizer",)),
        ("tokenizer.json", ("post_processor",)),
        ("tokenizer.json", ("decoder",)),
        ("tokenizer.json", ("model",)),
        ("tokenizer.json", ("model", "type")),
        ("tokenizer.json", ("model", "vocab")),
        ("tokenizer.json", ("model", "merges")),
        ("tokenizer.json", ("model", "byte_fallback")),
        ("tokenizer.json", ("model", "ignore_merges")),
        ("tokenizer_config.json", ("added_tokens_decoder",)),
        ("tokenizer_config.json", ("bos_token",)),
        ("tokenizer_config.json", ("chat_template",)),
        ("tokenizer_config.json", ("add_bos_token",)),
        ("tokenizer_config.json", ("tokenizer_class",)),
        ("tokenizer_config.json", ("additional_special_tokens",)),
    ]
)


@settings(max_examples=examples(250), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=PATHS, value=JSON, style=st.sampled_from(["bpe", "json", "model"]))
def test_any_damaged_field_is_either_read_or_refused_in_a_sentence(
    place: tuple[str, tuple[str, ...]], value: Any, style: str, tmp_path: Path
) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    if style == "bpe":
        bpe(tmp_path)
    else:
        spm(tmp_path, model=style == "model", json_too=True)
    name, keys = place
    source = json.loads((tmp_path / name).read_text())
    at = source
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    (tmp_path / name).write_text(json.dumps(source))
    try:
        load_vocabulary(tmp_path, CONFIG)
    except QuantkitError as error:
        assert "\n" not in str(error)
