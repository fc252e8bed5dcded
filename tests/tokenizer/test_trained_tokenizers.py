"""Tokenizers trained on the spot by the real trainers, each read by the real llama.cpp."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from quantkit.errors import UnsupportedError
from quantkit.families import token_roles
from quantkit.tokenizer import PROBE, differences, hf_token_ids, load_vocabulary, special_texts, unlike_texts
from quantkit.tokenizer.sentencepiece_model import parse
from tests.helpers.tiny_tokenizers import CORPUS, write_byte_level_bpe, write_raw_bpe, write_sentencepiece

from .oracle import disagreements, llama_ids

TEXTS = [*PROBE, *CORPUS.splitlines()]
LLAMA_STYLE = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "split_digits": True,
    "character_coverage": 0.98,
}


def train(folder: Path, **options: Any) -> Path:
    """A SentencePiece tokenizer.model, and nothing else, in `folder`."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()),
        model_writer=trained,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **({"vocab_size": 600} | options),
    )
    (folder / "tokenizer.model").write_bytes(trained.getvalue())
    return folder


def value(keys: Any, name: str) -> Any:
    return next((key.value for key in keys if key.key == f"tokenizer.ggml.{name}"), None)


@pytest.mark.parametrize("style", ["llama3", "smollm"])
def test_byte_level_bpe_of_unknown_hash_is_recognised_by_its_structure(style: str, tmp_path: Path) -> None:
    write_byte_level_bpe(tmp_path, style, 600)
    vocabulary = load_vocabulary(tmp_path, {"vocab_size": 600})
    assert unlike_texts(tmp_path, vocabulary.keys, [*TEXTS, *special_texts(tmp_path, vocabulary.keys)]) == []
    assert vocabulary.pre == {"llama3": "llama-bpe", "smollm": "smollm"}[style]
    assert disagreements(llama_ids(vocabulary, TEXTS, tmp_path), hf_token_ids(tmp_path, TEXTS), TEXTS) == []


@pytest.mark.parametrize("style", ["llama", "yi"])
@pytest.mark.parametrize("files", ["model", "json", "both"])
def test_sentencepiece_bpe_gives_the_same_ids_from_model_or_json(style: str, files: str, tmp_path: Path) -> None:
    write_sentencepiece(tmp_path, style, 600, model=files != "json", json_too=files != "model", unigram=False)
    vocabulary = load_vocabulary(tmp_path, {"vocab_size": 600})
    assert vocabulary.model == "llama"
    assert unlike_texts(tmp_path, vocabulary.keys, TEXTS) == []
    assert disagreements(llama_ids(vocabulary, TEXTS, tmp_path), hf_token_ids(tmp_path, TEXTS), TEXTS) == []


RAW = {"architectures": ["Gemma4ForCausalLM"]}


def test_a_bpe_over_raw_text_gives_the_same_ids_with_runs_of_newlines_and_spaces(tmp_path: Path) -> None:
    write_raw_bpe(tmp_path, 900)
    vocabulary = load_vocabulary(tmp_path, {"vocab_size": 904}, roles=token_roles(RAW))
    runs = ["\n" * count for count in range(1, 12)] + ["a\n\n\nb", " \n ", "\t\n\t", "x<|turn>user\n\n<turn|>\n"]
    texts = [*TEXTS, *runs, "<|tool_call>  f(x)<tool_call|>"]
    assert (vocabulary.model, vocabulary.pre, vocabulary.tokens[-1]) == ("gemma4", "", b"[PAD903]")
    assert unlike_texts(tmp_path, vocabulary.keys, [*TEXTS, *special_texts(tmp_path, vocabulary.keys)]) == []
    assert disagreements(llama_ids(vocabulary, texts, tmp_path), hf_token_ids(tmp_path, texts), texts) == []
    (whole,) = llama_ids(vocabulary, ["fox"], tmp_path, add_special=True)
    assert whole[0] == value(vocabulary.keys, "bos_token_id") == 1


def test_a_bpe_over_raw_text_is_refused_with_a_space_in_front(tmp_path: Path) -> None:
    write_raw_bpe(tmp_path, 900)
    source = json.loads((tmp_path / "tokenizer.json").read_text())
    source["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": "▁"}, source["normalizer"]],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(source))
    with pytest.raises(UnsupportedError, match="puts a space in front of the text"):
        load_vocabulary(tmp_path, {}, roles=token_roles(RAW))


def test_user_defined_pieces_are_cut_out_as_sentencepiece_does(tmp_path: Path) -> None:
    train(tmp_path, **LLAMA_STYLE, add_dummy_prefix=False, user_defined_symbols=["<think>", "▁▁", "jump"])
    texts = [*TEXTS, "<think>  jumping  </think> jumps", "   three spaces"]
    vocabulary = load_vocabulary(tmp_path, {})
    assert disagreements(llama_ids(vocabulary, texts, tmp_path), hf_token_ids(tmp_path, texts), texts) == []
    assert any("3 user-defined pieces" in warning for warning in vocabulary.warnings)


def test_a_missing_space_prefix_is_written_against_llama_cpps_default(tmp_path: Path) -> None:
    without = load_vocabulary(train(tmp_path, **LLAMA_STYLE, add_dummy_prefix=False), {})
    assert without.keys[0].key == "tokenizer.ggml.add_space_prefix"
    assert without.keys[0].value is False
    with_prefix = load_vocabulary(train(tmp_path, **LLAMA_STYLE), {})
    assert value(with_prefix.keys, "add_space_prefix") is None


def test_a_unigram_model_gives_sentencepieces_ids_with_its_normalization(tmp_path: Path) -> None:
    train(tmp_path, model_type="unigram", user_defined_symbols=["<think>"])
    texts = [*TEXTS, "ｆｕｌｌ ｗｉｄｔｈ  and ﬁ ligature", "<think> quick"]
    vocabulary = load_vocabulary(tmp_path, {})
    assert vocabulary.model == "t5"
    assert value(vocabulary.keys, "precompiled_charsmap")
    assert disagreements(llama_ids(vocabulary, texts, tmp_path), hf_token_ids(tmp_path, texts), texts) == []


def test_a_unigram_model_keeps_its_spaces_when_it_does_not_squeeze_them(tmp_path: Path) -> None:
    options = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    train(tmp_path, model_type="unigram", allow_whitespace_only_pieces=True, **options)
    vocabulary = load_vocabulary(tmp_path, {})
    unequal = differences(tmp_path, vocabulary.keys, TEXTS, llama_ids(vocabulary, TEXTS, tmp_path))
    assert [difference.text for difference in unequal] == [" "]
    assert "spaces only" in str(unequal[0].reason)


def test_a_unigram_model_with_byte_fallback_differs_only_on_characters_it_lacks(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path, "llama", 600, model=True, json_too=False, unigram=True)
    vocabulary = load_vocabulary(tmp_path, {})
    ids = hf_token_ids(tmp_path, TEXTS)
    types = value(vocabulary.keys, "token_type")
    whole = [
        text for text, numbers in zip(TEXTS, ids, strict=True) if 6 not in [types[n] for n in numbers] and text.strip()
    ]
    assert len(whole) > 10
    assert disagreements(llama_ids(vocabulary, whole, tmp_path), hf_token_ids(tmp_path, whole), whole) == []
    assert any("byte fallback" in warning for warning in vocabulary.warnings)


def test_bos_and_eos_are_added_as_the_tokenizer_does(tmp_path: Path) -> None:
    for style in ("llama3", "smollm"):
        folder = tmp_path / style
        folder.mkdir()
        ids = write_byte_level_bpe(folder, style, 600)
        vocabulary = load_vocabulary(folder, {"vocab_size": 600})
        plain, whole = (llama_ids(vocabulary, ["hello"], folder, add_special=add)[0] for add in (False, True))
        assert whole == ([ids["bos"], *plain] if style == "llama3" else plain)


def test_the_model_reader_agrees_with_the_sentencepiece_library(tmp_path: Path) -> None:
    train(tmp_path, **LLAMA_STYLE, user_defined_symbols=["<think>"], bos_id=2, eos_id=1)
    data = (tmp_path / "tokenizer.model").read_bytes()
    library = sentencepiece.SentencePieceProcessor(model_proto=data)
    model = parse(data)
    numbers = range(library.GetPieceSize())
    assert [piece.decode() for piece in model.pieces] == [library.IdToPiece(number) for number in numbers]
    assert model.scores == [library.GetScore(number) for number in numbers]
    assert [kind == 6 for kind in model.types] == [library.IsByte(number) for number in numbers]
    assert [kind == 3 for kind in model.types] == [library.IsControl(number) for number in numbers]
    assert [kind == 2 for kind in model.types] == [library.IsUnknown(number) for number in numbers]
    assert (model.bos_id, model.eos_id) == (library.bos_id(), library.eos_id())


def test_vocab_json_with_merges_txt_reads_as_the_same_tokenizer(tmp_path: Path) -> None:
    write_byte_level_bpe(tmp_path, "smollm", 600)
    source = json.loads((tmp_path / "tokenizer.json").read_text())
    source["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(source))
    whole = load_vocabulary(tmp_path, {"vocab_size": 600})
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(source["model"]["vocab"]))
    lines = [" ".join(merge) if isinstance(merge, list) else merge for merge in source["model"]["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", encoding="utf-8")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "GPT2Tokenizer"}))
    parts = load_vocabulary(tmp_path, {"vocab_size": 600})
    assert parts.pre == whole.pre == "gpt-2"
    assert parts.tokens == whole.tokens
    assert value(parts.keys, "merges") == value(whole.keys, "merges")
    assert disagreements(llama_ids(parts, TEXTS, tmp_path), hf_token_ids(tmp_path, TEXTS), TEXTS) == []


def test_a_token_that_takes_the_space_behind_it_is_the_reason_for_other_ids_there(tmp_path: Path) -> None:
    write_byte_level_bpe(tmp_path, "smollm", 600)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"]["1"]["rstrip"] = True
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    texts = ["<|im_start|>  user", "<|im_start|>user", "user <|im_end|> "]
    vocabulary = load_vocabulary(tmp_path, {"vocab_size": 600})
    (difference,) = differences(tmp_path, vocabulary.keys, texts, llama_ids(vocabulary, texts, tmp_path))
    assert difference.text == texts[0]
    assert "takes the white space" in str(difference.reason)
