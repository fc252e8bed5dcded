import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import UnsupportedError, UsageError
from quantkit.tokenizer import PROBE, known_since, load_vocabulary, pretokenizer_names
from quantkit.tokenizer.pretokenizers import canonical_steps
from tests.helpers.tiny_tokenizers import LLAMA3_SPLIT, write_byte_level_bpe

from .oracle import ids_of_files, write_vocab_gguf

CONFIG = {"vocab_size": 600}


def with_split(folder: Path, regex: str, **model: Any) -> Path:
    """The trained Llama-3-style tokenizer with another split and other model flags."""
    write_byte_level_bpe(folder, "llama3", 600)
    source = json.loads((folder / "tokenizer.json").read_text())
    source["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = regex
    source["model"] |= model
    (folder / "tokenizer.json").write_text(json.dumps(source))
    return folder


def test_every_name_offered_is_one_that_llama_cpp_loads(tmp_path: Path) -> None:
    write_byte_level_bpe(tmp_path, "llama3", 600)
    names = [name for name in pretokenizer_names() if known_since(name) is None]
    assert len(names) > 85
    paths = [
        write_vocab_gguf(tmp_path / f"{name}.gguf", load_vocabulary(tmp_path, CONFIG, pre=name).keys) for name in names
    ]
    assert all(ids[0] for ids in ids_of_files(paths, ["hello"]))


def test_a_newer_llama_cpps_split_is_recognised_and_splits_marks_and_joiners_with_their_letters(tmp_path: Path) -> None:
    letters = r"(?:\p{L}|\p{M}|\u200C|\u200D)+"
    folder = with_split(tmp_path, LLAMA3_SPLIT.replace(r"?\p{L}+", "?" + letters), ignore_merges=False)
    assert load_vocabulary(folder, CONFIG).pre == "k2-horizon"
    assert known_since("k2-horizon") == "b11549"


def test_an_unknown_name_is_refused_with_the_nearest(tmp_path: Path) -> None:
    write_byte_level_bpe(tmp_path, "llama3", 600)
    with pytest.raises(UsageError, match=r"--pre lama-bpe: .*nearest name is llama-bpe"):
        load_vocabulary(tmp_path, CONFIG, pre="lama-bpe")


@pytest.mark.parametrize(
    ("regex", "flags", "name"),
    [
        (LLAMA3_SPLIT, {}, "llama-bpe"),
        (LLAMA3_SPLIT, {"ignore_merges": False}, "dbrx"),
        (LLAMA3_SPLIT.replace("{1,3}", ""), {"ignore_merges": False}, "qwen2"),
        (LLAMA3_SPLIT.replace("{1,3}", "{1}"), {"ignore_merges": False}, "qwen2"),
        (LLAMA3_SPLIT.replace(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"'(?i:[sdmt]|ll|ve|re)"), {}, "llama-bpe"),
    ],
)
def test_a_split_is_recognised_however_it_is_spelled(
    regex: str, flags: dict[str, bool], name: str, tmp_path: Path
) -> None:
    assert load_vocabulary(with_split(tmp_path, regex, **flags), CONFIG).pre == name


def test_a_special_token_that_merges_do_not_make_keeps_no_name_from_being_taken(tmp_path: Path) -> None:
    folder = with_split(tmp_path, LLAMA3_SPLIT.replace("{1,3}", ""), ignore_merges=True)
    source = json.loads((folder / "tokenizer.json").read_text())
    special = next(token for token in source["added_tokens"] if token["content"] == "<|eot_id|>")
    source["model"]["vocab"][special["content"]] = special["id"]
    (folder / "tokenizer.json").write_text(json.dumps(source))
    assert load_vocabulary(folder, CONFIG).pre == "qwen2"
    # a word that merges do not make is another tokenizer: llama.cpp's qwen2 would cut it
    word = max((text for text in source["model"]["vocab"] if text.isascii() and text.isalpha()), key=len)
    source["model"]["merges"] = [pair for pair in source["model"]["merges"] if "".join(pair) != word]
    (folder / "tokenizer.json").write_text(json.dumps(source))
    with pytest.raises(UnsupportedError, match="this tokenizer has ignore_merges true"):
        load_vocabulary(folder, CONFIG)


def test_an_unknown_split_is_refused_with_the_nearest_name_and_the_option(tmp_path: Path) -> None:
    folder = with_split(tmp_path, LLAMA3_SPLIT.replace("{1,3}", "{1,4}"))
    with pytest.raises(UnsupportedError, match=r"nearest is llama-bpe \(it splits \d+ of \d+ .* --pre llama-bpe"):
        load_vocabulary(folder, CONFIG)
    assert load_vocabulary(folder, CONFIG, pre="llama-bpe").pre == "llama-bpe"


def test_a_split_that_is_far_from_all_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="--pre"):
        load_vocabulary(with_split(tmp_path, "[aeiou]+"), CONFIG)


def test_a_normalizer_that_llama_cpp_lacks_is_refused(tmp_path: Path) -> None:
    write_byte_level_bpe(tmp_path, "llama3", 600)
    source = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(source | {"normalizer": {"type": "Lowercase"}}))
    with pytest.raises(UnsupportedError, match="normalizes text with Lowercase"):
        load_vocabulary(tmp_path, CONFIG)
    assert any("Lowercase" in warning for warning in load_vocabulary(tmp_path, CONFIG, pre="llama-bpe").warnings)


def test_a_prefix_space_before_bytes_is_not_taken_for_gpt2s_split() -> None:
    assert canonical_steps({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}) == ["@gpt2"]
    assert canonical_steps({"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}) is None


def test_the_probe_is_normalized_and_has_no_text_twice() -> None:
    assert all(unicodedata.normalize("NFC", text) == text for text in PROBE)
    assert len(set(PROBE)) == len(PROBE)
    everything = "".join(PROBE)
    for low, high in (
        (0x4E00, 0x9FFF),
        (0x3040, 0x30FF),
        (0xAC00, 0xD7AF),
        (0x600, 0x6FF),
        (0x900, 0x97F),
        (0xE00, 0xE7F),
    ):
        assert any(low <= ord(character) <= high for character in everything)
