"""Go's own engine renders real templates as jinja2 renders the Jinja they were made from."""

from collections.abc import Sequence

import pytest

from quantkit.chat import render
from quantkit.errors import TemplateError
from quantkit.publish.ollama.go_template import GoTemplate, synthesize
from tests.helpers.golang import rendered_by_go
from tests.publish.corpus import NOT_TEXT_ONLY, Published, conversations, corpus

MISSION = {
    "Llama 2": "ou/llama2:7b",
    "Llama 3": "lenml/llama3",
    "Llama 3.1": "grid/llama",
    "Qwen 2.5": "lenml/qwen2_5",
    "ChatML": "built-in/chatml",
    "Mistral": "ou/mistral:7b-instruct-fp16",
    "Mixtral": "ou/mixtral:8x7b",
    "Mistral Nemo": "lenml/mistral_nemo",
    "Yi": "ou/yi:6b",
    "Yi 1.5": "grid/yi",
    "Baichuan 2": "built-in/baichuan2",
    "Huozi 3": "built-in/huozi",
    "Blossom": "built-in/blossom",
    "Gemma 2": "lc/google-gemma-2-2b-it",
    "Gemma 3": "lenml/gemma3",
    "DeepSeek V3": "lenml/deepseek_v3",
}


def test_the_missions_models_are_accepted_and_exact() -> None:
    named = {template.name: template for template in corpus()}
    chosen = [named[name] for name in MISSION.values()]
    accepted, refused, wrong = compared(chosen)
    assert not refused and not wrong, (refused, wrong)
    assert len(accepted) == len(MISSION)


@pytest.mark.full
def test_of_all_real_templates_none_is_wrong_and_nine_of_ten_are_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    published = corpus()
    accepted, refused, wrong = compared(published)
    text_only = [template.name for template in published if template.name not in NOT_TEXT_ONLY]
    of_these = [name for name in accepted if name in text_only]
    with capsys.disabled():
        print(f"\n{len(published)} templates: {len(accepted)} accepted, {len(refused)} refused, {len(wrong)} wrong")
        print(f"{len(text_only)} for conversations in text alone: {len(of_these)} accepted")
        for name, reason in {**refused, **wrong}.items():
            print(f"  {'wrong' if name in wrong else 'refused'} {name}: {reason}")
    assert len(published) >= 150
    assert not wrong
    assert len(of_these) >= 0.9 * len(text_only)


def compared(published: Sequence[Published]) -> tuple[dict[str, GoTemplate], dict[str, str], dict[str, str]]:
    """Templates by name: the accepted ones, why others are refused, and where accepted ones are wrong."""
    accepted: dict[str, GoTemplate] = {}
    refused: dict[str, str] = {}
    for template in published:
        try:
            accepted[template.name] = synthesize(
                template.jinja,
                bos_token=template.bos,
                eos_token=template.eos,
                special_tokens=template.special,
                adds_bos=bool(template.bos),
            )
        except TemplateError as error:
            refused[template.name] = str(error)
    truth = {template.name: by_jinja(template) for template in published if template.name in accepted}
    prompts = rendered_by_go(
        [(accepted[name].text, [conversation for conversation, _ in pairs]) for name, pairs in truth.items()]
    )
    wrong = {}
    for (name, pairs), texts in zip(truth.items(), prompts, strict=True):
        assert len(pairs) >= 25, f"{name} renders only {len(pairs)} conversations"
        for (conversation, expected), text in zip(pairs, texts, strict=True):
            if text != expected:
                wrong[name] = f"{[message['role'] for message in conversation]}: Go {text!r}, Jinja {expected!r}"
    return accepted, refused, wrong


def by_jinja(template: Published) -> list[tuple[list[dict[str, str]], str]]:
    """The conversations that a template accepts, with their prompts; nothing follows an answer at the end."""
    prompts = []
    for conversation in conversations(system=True):
        last = conversation[-1]
        try:
            text = render(
                template.jinja,
                conversation,
                bos_token=template.bos,
                eos_token=template.eos,
                special_tokens=template.special,
                add_generation_prompt=last["role"] == "user",
            )
        except TemplateError:
            continue
        if last["role"] == "assistant":
            text = text[: text.rindex(last["content"]) + len(last["content"])]
        prompts.append((conversation, text.removeprefix(template.bos)))
    return prompts
