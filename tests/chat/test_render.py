"""Templates render as transformers renders them; what fails says so in one sentence."""

import json
import time

import pytest

from quantkit.chat import BUILT_IN, TemplateRefusal, contained, render, render_contained, render_sample
from quantkit.errors import TemplateError
from tests.chat.cases import (
    CASES,
    STORED,
    Named,
    built_in_templates,
    by_transformers,
    grid_templates,
    smollm2_template,
    without_dates,
)
from tests.helpers.render_child import start_child

TRUTH = json.loads(STORED.read_text("utf-8"))
SYSTEM, USER = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}


@pytest.fixture(autouse=True)
def a_process_for_each_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contained, "_child", start_child)


def ours(template: str, tokens: dict[str, str], case: str) -> str | None:
    options = dict(CASES[case])
    messages = options.pop("messages")
    named = dict(tokens)
    bos, eos = named.pop("bos_token", None), named.pop("eos_token", None)
    try:
        text = render(template, messages, bos_token=bos, eos_token=eos, special_tokens=named, **options)
    except TemplateError:
        return None
    return without_dates(text)


def compare(templates: list[Named]) -> None:
    for name, template, tokens in templates:
        for case in CASES:
            assert ours(template, tokens, case) == TRUTH[name][case], (name, case)


def test_the_built_in_templates_render_as_with_transformers() -> None:
    compare(built_in_templates())


def test_the_template_of_smollm2_renders_as_with_transformers() -> None:
    compare(smollm2_template())


def test_the_templates_of_fourteen_published_models_render_as_with_transformers() -> None:
    compare(grid_templates())


def test_the_stored_renderings_say_something() -> None:
    texts = [text for cases in TRUTH.values() for text in cases.values()]
    assert sum(text is None for text in texts) >= 3
    assert sum(bool(text) and "Hello!" in text for text in texts if text) >= 40


@pytest.mark.full
def test_transformers_still_renders_what_is_stored() -> None:
    assert by_transformers([*built_in_templates(), *smollm2_template(), *grid_templates()]) == TRUTH


PUBLISHED = {
    # README of HIT-SCIR/huozi, Quick Start
    "huozi": (
        [
            {"role": "system", "content": "你是一个智能助手"},
            {"role": "user", "content": "请你用python写一段快速排序的代码"},
        ],
        "<|beginofutterance|>系统\n你是一个智能助手<|endofutterance|>\n<|beginofutterance|>用户\n"
        "请你用python写一段快速排序的代码<|endofutterance|>\n<|beginofutterance|>助手\n",
    ),
    # README of Azure99/BlossomLM, a dialogue of two turns
    "blossom": (
        [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "Hello! How can I assist you today?"},
            {"role": "user", "content": "Generate a random number using python"},
        ],
        "A chat between a human and an artificial intelligence bot. The bot gives helpful, detailed, and polite answers"
        " to the human's questions.\n|Human|: hello\n|Bot|: Hello! How can I assist you today?</s>\n"
        "|Human|: Generate a random number using python\n|Bot|: ",
    ),
    # build_chat_input of Baichuan2: system, then 195 and 196 before each turn, nothing after it
    "baichuan2": (
        [SYSTEM, USER, {"role": "assistant", "content": "Yes?"}, USER],
        "Be kind.<reserved_106>Hi<reserved_107>Yes?<reserved_106>Hi<reserved_107>",
    ),
    # _build_chat_input of Baichuan-13B-Chat: EOS after the assistant's words
    "baichuan": (
        [USER, {"role": "assistant", "content": "Yes?"}, USER],
        "<reserved_102>Hi<reserved_103>Yes?</s><reserved_102>Hi<reserved_103>",
    ),
    # make_context of Qwen-7B-Chat
    "chatml": (
        [USER],
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    # README of deepseek-ai/DeepSeek-V4-Pro, encoding/, with the answers of test_python_encoders
    "deepseek-v4": (
        [SYSTEM, USER, {"role": "assistant", "content": "Yes?"}, USER],
        "<s>Be kind.<｜User｜>Hi<｜Assistant｜></think>Yes?</s><｜User｜>Hi<｜Assistant｜></think>",
    ),
    # encoding_k3.py of moonshotai/Kimi-K3: it thinks with the greatest effort
    "kimi-k3": (
        [SYSTEM, USER, {"role": "assistant", "content": "Yes?"}, USER],
        '<|open|>message role="system" type="thinking-effort"<|sep|>`thinking_effort` guides on how much to think in'
        " your thinking channel (not including the response channel), supported values include `low`, `medium`, `high`,"
        " and `max`.\nNow the system is invoked with `thinking_effort=max`.<|close|>message<|sep|><|end_of_msg|>"
        '<|open|>message role="system"<|sep|>Be kind.<|close|>message<|sep|><|end_of_msg|>'
        '<|open|>message role="user"<|sep|>Hi<|close|>message<|sep|><|end_of_msg|>'
        '<|open|>message role="assistant"<|sep|><|open|>think<|sep|><|close|>think<|sep|>'
        "<|open|>response<|sep|>Yes?<|close|>response<|sep|><|close|>message<|sep|><|end_of_msg|>"
        '<|open|>message role="user"<|sep|>Hi<|close|>message<|sep|><|end_of_msg|>'
        '<|open|>message role="assistant"<|sep|><|open|>think<|sep|>',
    ),
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_template_writes_its_published_format(name: str) -> None:
    messages, prompt = PUBLISHED[name]
    assert render(BUILT_IN[name].text, messages, bos_token="<s>", eos_token="</s>") == prompt


def test_roles_may_also_be_huozis_own_words() -> None:
    theirs = [{"role": "用户", "content": "你好"}]
    assert render(BUILT_IN["huozi"].text, theirs) == render(BUILT_IN["huozi"].text, [{**theirs[0], "role": "user"}])


def test_a_generation_block_prints_what_it_holds() -> None:
    template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
    assert render(template, [USER, SYSTEM]) == "Hi"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("fine\n{% if %}", "malformed at line 2"),
        ("a\nb\n{{ messages[0] + 1 }}", "fails at line 3: TypeError"),
        ("{{ nothing.at.all }}", "fails at line 1: 'nothing' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "fails at line 1"),
        (
            "{% for m in messages %}\n{{ raise_exception('no ' + m.role) }}{% endfor %}",
            "refuses the conversation: no user",
        ),
    ],
)
def test_a_template_that_fails_says_where_and_why(template: str, words: str) -> None:
    with pytest.raises(TemplateError) as error:
        render(template, [USER])
    assert words in str(error.value)
    with pytest.raises(type(error.value)) as contained:
        render_contained(template, [USER])
    assert str(contained.value) == str(error.value)


def test_the_process_that_renders_has_no_environment_to_print(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that escapes the sandbox (CVE-2024-56326, CVE-2025-27516) would find tokens and keys there."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert set(contained._environment()) <= {"PYTHONPATH", "SYSTEMROOT", "LD_LIBRARY_PATH"}
    assert (
        render_contained("{{ messages[0].content }}", [{"role": "user", "content": "sees nothing"}]) == "sees nothing"
    )


def test_a_template_that_loops_for_hours_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    assert contained.SECONDS == 5
    monkeypatch.setattr(contained, "SECONDS", 1)
    start = time.monotonic()
    with pytest.raises(TemplateError, match="exceeds the limit of 1 s or 1024 MiB"):
        render_sample("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    assert time.monotonic() - start < 120


@pytest.mark.parametrize("template", ["{{ 'a' * 10 ** 11 }}", "{{ 'a' * 10 ** 8 }}"])
def test_a_template_that_eats_memory_is_ended(template: str) -> None:
    with pytest.raises(TemplateError):
        render_sample(template)


def test_a_sample_leaves_out_what_the_template_refuses() -> None:
    picky = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages | length }}"
    assert (render_sample(picky).roles, render_sample(picky).text) == (("user", "assistant", "user"), "3")
    with pytest.raises(TemplateRefusal, match="never"):
        render_sample("{{ raise_exception('never') }}")
