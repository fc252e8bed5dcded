import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import TokenizerError, UsageError
from quantkit.families import token_roles
from quantkit.tokenizer import PROBE, Vocabulary, hf_token_ids, load_vocabulary
from quantkit.tokenizer.roles import LLAMA_ROLES
from tests.helpers.tiny_tokenizers import write_byte_level_bpe, write_sentencepiece

BPE = {"vocab_size": 600}


@pytest.fixture
def smollm(tmp_path: Path) -> Path:
    write_byte_level_bpe(tmp_path, "smollm", 600)
    return tmp_path


def change(folder: Path, name: str = "tokenizer_config.json", **values: Any) -> None:
    path = folder / name
    old = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (old | values).items() if value is not ...}))


def names(vocabulary: Vocabulary) -> list[str]:
    return [key.key.removeprefix("tokenizer.").removeprefix("ggml.") for key in vocabulary.keys]


def value(vocabulary: Vocabulary, name: str) -> Any:
    return next((key.value for key in vocabulary.keys if key.key.endswith(name)), None)


def test_the_keys_come_in_the_order_of_llama_cpps_converter(smollm: Path) -> None:
    assert names(load_vocabulary(smollm, BPE, roles=LLAMA_ROLES)) == [
        "add_space_prefix",
        "model",
        "pre",
        "tokens",
        "token_type",
        "merges",
        "bos_token_id",
        "eos_token_id",
        "unknown_token_id",
        "padding_token_id",
        "chat_template",
    ]


def test_a_named_token_wins_over_the_number_in_the_configuration(smollm: Path) -> None:
    vocabulary = load_vocabulary(smollm, BPE | {"eos_token_id": 7})
    assert value(vocabulary, "eos_token_id") == 2
    change(smollm, eos_token=...)
    assert value(load_vocabulary(smollm, BPE | {"eos_token_id": 7}), "eos_token_id") == 7


@pytest.mark.parametrize("number", [600, -1])
def test_a_special_id_outside_the_vocabulary_is_left_out_with_a_warning(number: int, smollm: Path) -> None:
    change(smollm, pad_token=...)
    vocabulary = load_vocabulary(smollm, BPE | {"pad_token_id": number})
    assert value(vocabulary, "padding_token_id") is None
    assert any(f"pad_token_id {number}" in warning for warning in vocabulary.warnings)


def test_an_end_put_by_the_post_processor_is_the_eos_and_the_named_one_ends_a_turn(smollm: Path) -> None:
    parts = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}]
    marks = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    template = {"type": "TemplateProcessing", "single": parts, "pair": parts, "special_tokens": marks}
    change(smollm, "tokenizer.json", post_processor=template)
    vocabulary = load_vocabulary(smollm, BPE)
    assert (value(vocabulary, "eos_token_id"), value(vocabulary, "eot_token_id")) == (0, 2)
    assert value(vocabulary, "add_eos_token") is True


def test_a_byte_level_post_processor_adds_nothing_whatever_the_configuration_says(smollm: Path) -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    change(smollm, "tokenizer.json", post_processor=byte_level)
    change(smollm, add_bos_token=True)
    vocabulary = load_vocabulary(smollm, BPE)
    assert value(vocabulary, "add_bos_token") is False
    assert value(vocabulary, "add_eos_token") is False


def test_merges_as_pairs_and_as_strings_read_the_same(smollm: Path) -> None:
    source = json.loads((smollm / "tokenizer.json").read_text())
    merges = source["model"]["merges"]
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in merges]
    vocabularies = []
    for form in (pairs, [" ".join(pair) for pair in pairs]):
        source["model"]["merges"] = form
        (smollm / "tokenizer.json").write_text(json.dumps(source))
        vocabularies.append(load_vocabulary(smollm, BPE).keys)
    assert vocabularies[0] == vocabularies[1]


def test_a_small_granite_vocabulary_never_adds_bos_and_one_of_another_family_is_left_alone(smollm: Path) -> None:
    vocabulary = load_vocabulary(smollm, {"vocab_size": 49152}, roles=LLAMA_ROLES)
    assert names(vocabulary)[-1] == "add_bos_token"
    assert value(vocabulary, "add_bos_token") is False
    # StarCoder 2 has as many tokens
    assert "add_bos_token" not in names(load_vocabulary(smollm, {"vocab_size": 49152}))


class TestEnds:
    def test_a_list_gives_the_eos_and_the_keys_at_which_llama_cpp_stops(self, smollm: Path) -> None:
        change(smollm, eos_token=...)
        change(smollm, "special_tokens_map.json", eos_token=...)
        vocabulary = load_vocabulary(smollm, BPE | {"eos_token_id": [7, 8, 9, 10]})
        assert [value(vocabulary, f"{role}_token_id") for role in ("eos", "eot", "eom")] == [7, 8, 9]
        assert any("does not stop at 10 (" in warning for warning in vocabulary.warnings)

    def test_the_map_of_special_tokens_names_the_eos_where_nothing_else_does(self, smollm: Path) -> None:
        change(smollm, eos_token=...)
        change(smollm, "special_tokens_map.json", eos_token={"content": "<|im_end|>"})
        vocabulary = load_vocabulary(smollm, BPE | {"eos_token_id": [2, 0]})
        assert value(vocabulary, "eos_token_id") == 2
        # llama.cpp stops at <|endoftext|> by its text
        assert value(vocabulary, "eot_token_id") is None
        assert not any("end of text" in warning for warning in vocabulary.warnings)

    def test_the_generation_configuration_comes_before_the_models(self, smollm: Path) -> None:
        change(smollm, eos_token=...)
        change(smollm, "special_tokens_map.json", eos_token=...)
        (smollm / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 7]}))
        vocabulary = load_vocabulary(smollm, BPE | {"eos_token_id": [7, 8]})
        assert [value(vocabulary, f"{role}_token_id") for role in ("eos", "eot", "eom")] == [9, 7, 8]
        (message,) = [warning for warning in vocabulary.warnings if "disagree on the end of text" in warning]
        assert "config.json names 7 (" in message
        assert "the GGUF's EOS is 9 (" in message

    def test_a_bare_number_that_a_name_overrules_is_told_and_adds_no_key(self, smollm: Path) -> None:
        vocabulary = load_vocabulary(smollm, BPE | {"eos_token_id": 7})
        assert [value(vocabulary, f"{role}_token_id") for role in ("eos", "eot", "eom")] == [2, None, None]
        assert any("config.json names 7 (" in warning for warning in vocabulary.warnings)

    def test_an_absent_eos_is_a_warning(self, smollm: Path) -> None:
        change(smollm, eos_token=...)
        change(smollm, "special_tokens_map.json", eos_token=...)
        vocabulary = load_vocabulary(smollm, BPE)
        assert value(vocabulary, "eos_token_id") is None
        assert any("no file of the checkpoint names an end of text (EOS)" in text for text in vocabulary.warnings)


class TestChatTemplates:
    def test_the_places_of_a_template_count_in_the_order_of_transformers_and_a_conflict_is_told(
        self, smollm: Path
    ) -> None:
        (smollm / "chat_template.jinja").write_text("J")
        change(smollm, chat_template="C")
        (smollm / "chat_template.json").write_text(json.dumps({"chat_template": "P"}))
        for text, file, conflict in (
            ("J", "chat_template.jinja", "chat_template.jinja and tokenizer_config.json and chat_template.json hold"),
            ("C", "tokenizer_config.json", "tokenizer_config.json and chat_template.json hold"),
            ("P", "chat_template.json", None),
        ):
            vocabulary = load_vocabulary(smollm, BPE)
            conflicts = [warning for warning in vocabulary.warnings if "different chat templates" in warning]
            assert vocabulary.chat_template == text
            assert [warning.startswith(conflict or "") for warning in conflicts] == ([True] if conflict else [])
            if file == "tokenizer_config.json":
                change(smollm, chat_template=...)
            else:
                (smollm / file).unlink()

    def test_equal_templates_in_two_places_are_no_conflict(self, smollm: Path) -> None:
        change(smollm, chat_template="C")
        (smollm / "chat_template.jinja").write_text("C")
        assert not any("chat template" in warning for warning in load_vocabulary(smollm, BPE).warnings)

    def test_templates_of_the_additional_folder_stand_beside_the_default_one(self, smollm: Path) -> None:
        (smollm / "additional_chat_templates").mkdir()
        (smollm / "additional_chat_templates" / "rag.jinja").write_text("R")
        change(smollm, chat_template="C")
        vocabulary = load_vocabulary(smollm, BPE)
        assert (vocabulary.chat_template, value(vocabulary, "chat_template.rag")) == ("C", "R")

    @pytest.mark.parametrize(
        "place",
        ["chat_template.jinja", "additional_chat_templates/rag.jinja", "tokenizer_config.json", "named", "json"],
    )
    def test_a_template_that_does_not_parse_is_a_warning_wherever_it_is(self, place: str, smollm: Path) -> None:
        broken = "{% for m in messages %}{{ m['content'] }}"
        change(smollm, chat_template=...)
        if place.endswith(".jinja"):
            (smollm / place).parent.mkdir(exist_ok=True)
            (smollm / place).write_text(broken)
        elif place == "json":
            (smollm / "chat_template.json").write_text(json.dumps({"chat_template": broken}))
        else:
            named = [{"name": "default", "template": "D"}, {"name": "rag", "template": broken}]
            change(smollm, chat_template=named if place == "named" else broken)
        (warning,) = [text for text in load_vocabulary(smollm, BPE).warnings if "malformed" in text]
        assert "at line 1" in warning
        assert "--chat-template" in warning
        replaced = load_vocabulary(smollm, BPE, chat_template="mine")
        assert not any("malformed" in text for text in replaced.warnings)

    def test_named_templates_get_a_key_each_and_the_default_comes_last(self, smollm: Path) -> None:
        named = [
            {"name": "default", "template": "D"},
            {"name": "tool use", "template": "T"},
            {"name": "rag", "template": "R"},
        ]
        change(smollm, chat_template=named)
        vocabulary = load_vocabulary(smollm, BPE)
        assert [name for name in names(vocabulary) if "template" in name] == [
            "chat_template.tool_use",
            "chat_template.rag",
            "chat_templates",
            "chat_template",
        ]
        assert vocabulary.chat_template == "D"
        assert value(vocabulary, "chat_templates") == ["rag", "tool_use"]

    def test_the_users_template_replaces_all(self, smollm: Path) -> None:
        vocabulary = load_vocabulary(smollm, BPE, chat_template="mine")
        assert vocabulary.chat_template == "mine"
        assert sum("template" in name for name in names(vocabulary)) == 1
        with pytest.raises(TokenizerError, match="empty"):
            load_vocabulary(smollm, BPE, chat_template=" \n")

    def test_a_template_in_json_is_read(self, smollm: Path) -> None:
        change(smollm, chat_template=...)
        (smollm / "chat_template.json").write_text(json.dumps({"chat_template": "J"}))
        assert load_vocabulary(smollm, BPE).chat_template == "J"


class TestAddedTokens:
    def test_sentencepiece_added_tokens_are_control_when_special_and_spelled_out_when_not(self, tmp_path: Path) -> None:
        write_sentencepiece(tmp_path, "llama", 600, model=True, json_too=False, unigram=False)
        decoder = json.loads((tmp_path / "tokenizer_config.json").read_text())["added_tokens_decoder"]
        decoder |= {
            "600": {"content": "<tool>", "special": True},
            "601": {"content": "▁two", "special": False},
            "602": {"content": "<|looks|>", "special": False},
        }
        change(tmp_path, added_tokens_decoder=decoder)
        (tmp_path / "added_tokens.json").write_text(json.dumps({"plain": 603, "far": 700}))
        vocabulary = load_vocabulary(tmp_path, {"vocab_size": 606})
        types, scores = value(vocabulary, "token_type"), value(vocabulary, "scores")
        assert vocabulary.tokens[600:] == [b"<tool>", b" two", b"<|looks|>", b"plain", b"[PAD604]", b"[PAD605]"]
        assert types[600:] == [3, 4, 3, 4, 5, 5]
        assert scores[600:] == [-1000, -1000, -1000, -1000, -10000, -10000]
        assert any("padded the vocabulary from 604 to 606" in warning for warning in vocabulary.warnings)
        assert any("700" in warning and "'far'" in warning for warning in vocabulary.warnings)

    def test_byte_level_padding_is_visible(self, smollm: Path) -> None:
        vocabulary = load_vocabulary(smollm, {"vocab_size": 602})
        assert vocabulary.tokens[600:] == [b"[PAD600]", b"[PAD601]"]
        assert value(vocabulary, "token_type")[600:] == [5, 5]
        assert any("from 600 to 602" in warning for warning in vocabulary.warnings)


def test_pre_does_not_apply_to_sentencepiece(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path, "llama", 600, model=True, json_too=False, unigram=False)
    with pytest.raises(UsageError, match="--pre llama-bpe does not apply"):
        load_vocabulary(tmp_path, {"vocab_size": 600}, pre="llama-bpe")


class TestRolesOfFamilies:
    def test_internlm_2_ends_its_turns_with_a_token_that_the_configuration_does_not_call_the_end(
        self, tmp_path: Path
    ) -> None:
        write_sentencepiece(tmp_path, "llama", 600, model=True, json_too=False, unigram=False)
        change(tmp_path, added_tokens_decoder={"599": {"content": "<|im_end|>", "special": True}})
        config = {"vocab_size": 600, "eos_token_id": 2}
        assert value(load_vocabulary(tmp_path, config), "eos_token_id") == 2
        vocabulary = load_vocabulary(tmp_path, config, roles=token_roles({"architectures": ["InternLM2ForCausalLM"]}))
        assert value(vocabulary, "eos_token_id") == 599
        assert any("<|im_end|>" in warning and "not 2" in warning for warning in vocabulary.warnings)

    def test_a_family_without_its_tokens_is_left_as_the_files_have_it(self, smollm: Path) -> None:
        plain = load_vocabulary(smollm, BPE)
        assert (
            load_vocabulary(smollm, BPE, roles=token_roles({"architectures": ["GemmaForCausalLM"]})).keys == plain.keys
        )

    def test_an_end_that_has_a_name_but_no_id_is_found_by_its_name(self, tmp_path: Path) -> None:
        write_sentencepiece(tmp_path, "yi", 600, model=True, json_too=False, unigram=False)
        vocabulary = load_vocabulary(tmp_path, {"vocab_size": 600})
        assert (value(vocabulary, "bos_token_id"), value(vocabulary, "eos_token_id")) == (1, 2)
        assert any("<|endoftext|>" in warning for warning in vocabulary.warnings)


def test_the_rows_of_the_embedding_are_read_where_a_configuration_has_them(smollm: Path) -> None:
    for config in ({"text_config": {"vocab_size": 604}}, {"padded_vocab_size": 604}):
        assert len(load_vocabulary(smollm, config).tokens) == 604


def test_added_tokens_without_a_row_are_left_out_with_a_warning(smollm: Path) -> None:
    source = json.loads((smollm / "tokenizer.json").read_text())
    source["added_tokens"].append(source["added_tokens"][0] | {"id": 600, "content": "<image>", "special": False})
    (smollm / "tokenizer.json").write_text(json.dumps(source))
    vocabulary = load_vocabulary(smollm, BPE)
    assert len(vocabulary.tokens) == 600
    assert any("left out 1 added tokens with ids from 600 ('<image>')" in warning for warning in vocabulary.warnings)
    assert len(load_vocabulary(smollm, {"vocab_size": 601}).tokens) == 601


def test_padding_and_truncation_of_tokenizer_json_do_not_reach_the_vocabulary(tmp_path: Path) -> None:
    write_byte_level_bpe(tmp_path, "llama3", 600)
    plain, ids = load_vocabulary(tmp_path, BPE), hf_token_ids(tmp_path, PROBE)
    padding = {
        "strategy": {"Fixed": 16},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    for settings in ({"padding": padding}, {"truncation": truncation}, {"padding": padding, "truncation": truncation}):
        change(tmp_path, "tokenizer.json", **({"padding": None, "truncation": None} | settings))
        assert load_vocabulary(tmp_path, BPE) == plain
        assert hf_token_ids(tmp_path, PROBE) == ids == plain.probe_ids
