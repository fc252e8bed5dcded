"""Which built-in a checkpoint without a template was trained with: only where its own files say so."""

import pytest

from quantkit.chat import BUILT_IN, suggest, suggestions, template_name
from tests.chat.cases import grid_templates, smollm2_template

BAICHUAN = {"user_token_id": 195, "assistant_token_id": 196}


def vocabulary(*marks: tuple[int, str]) -> list[str]:
    tokens = [f"t{i}" for i in range(300)]
    for number, text in marks:
        tokens[number] = text
    return tokens


def name(
    tokens: list[str],
    generation_config: dict[str, object],
    checkpoint: str = "model",
    architecture: str | None = "llama",
) -> str | None:
    suggestion = suggest(tokens, generation_config, checkpoint, architecture)
    return suggestion and suggestion.template.name


def test_huozi_is_known_by_its_vocabulary() -> None:
    assert name(vocabulary((7, "<|beginofutterance|>"), (9, "<|endofutterance|>")), {}) == "huozi"
    assert name(vocabulary((7, "<|beginofutterance|>")), {}) is None


def test_the_two_baichuans_are_told_apart_by_what_stands_at_195() -> None:
    second = vocabulary((195, "<reserved_106>"), (196, "<reserved_107>"))
    first = vocabulary((195, "<reserved_102>"), (196, "<reserved_103>"))
    assert name(second, BAICHUAN) == "baichuan2"
    assert name(first, BAICHUAN) == "baichuan"
    assert name(second, {}) is None, "a base model has the tokens too"
    assert name(vocabulary(), BAICHUAN) is None
    assert name(second[:100], BAICHUAN) is None
    assert name(second, {"user_token_id": "195", "assistant_token_id": None}) is None


def test_qwen_1_says_chatml_and_its_base_model_says_raw() -> None:
    tokens = vocabulary((5, "<|im_start|>"), (6, "<|im_end|>"))
    assert name(tokens, {"chat_format": "chatml"}) == "chatml"
    assert name(tokens, {"chat_format": "raw"}) is None
    assert name(vocabulary(), {"chat_format": "chatml"}) is None


def test_blossom_is_known_by_name_and_two_answers_are_none() -> None:
    assert name([], {}, "blossom-v3-mistral-7b") == "blossom"
    both = vocabulary((195, "<reserved_106>"), (196, "<reserved_107>"))
    assert name(both, BAICHUAN, "Blossom-v2-baichuan2-7b") is None
    fitting = suggestions(both, BAICHUAN, "Blossom-v2-baichuan2-7b", "llama")
    assert [suggestion.template.name for suggestion in fitting] == ["baichuan2", "blossom"]


@pytest.mark.parametrize(("template", "architecture"), [("deepseek-v4", "deepseek4"), ("kimi-k3", "kimi-k3")])
def test_a_family_without_templates_is_known_by_its_architecture_and_its_tokens(
    template: str, architecture: str
) -> None:
    tokens = vocabulary(*enumerate(BUILT_IN[template].marks))
    assert name(tokens, {}, "DeepSeek-V4-Flash", architecture) == template
    assert name(tokens, {}, "DeepSeek-V4-Flash", "deepseek2") is None, "DeepSeek-V3.2 has the tokens too"
    assert name(tokens, {}, "DeepSeek-V4-Flash", None) is None
    assert name(vocabulary(), {}, "DeepSeek-V4-Flash", architecture) is None
    assert name(tokens, {}, "DeepSeek-V4-Flash-Base", architecture) is None
    assert name(tokens, {}, "my-database-model", architecture) == template


def test_nothing_points_anywhere_in_an_ordinary_checkpoint() -> None:
    assert name(vocabulary(), {"eos_token_id": 2}, "Llama-2-7b") is None


def test_every_built_in_says_where_its_format_is_published() -> None:
    for built_in in BUILT_IN.values():
        assert built_in.source and built_in.models
        assert all(mark in built_in.text for mark in built_in.marks)
        assert built_in.end_of_turn is None or built_in.end_of_turn in built_in.marks


def test_formats_are_recognised_by_their_marks() -> None:
    assert [template_name(template.text) for template in BUILT_IN.values()] == list(BUILT_IN)
    names = {title: template_name(text) for title, text, _ in [*grid_templates(), *smollm2_template()]}
    assert names["SmolLM2"] == names["qwen"] == names["yi"] == names["internlm"] == names["dbrx"] == "chatml"
    assert (names["llama"], names["gemma"], names["phi"]) == ("llama-3", "gemma", "phi-4")
    assert (names["mistral"], names["deepseek"], names["exaone"]) == ("mistral", "deepseek", "exaone")
    assert template_name("{{ messages }}") is None
