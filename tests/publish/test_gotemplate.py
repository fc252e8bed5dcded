"""What a Jinja template becomes: an exact Go template, one with limits, or a refusal with the reason."""

import pytest

from quantkit.chat import BUILT_IN, render
from quantkit.errors import TemplateError, TemplateRefused
from quantkit.publish.ollama.go_template import GoTemplate, synthesize
from quantkit.publish.ollama.modelfile import Modelfile, parse_modelfile, write_modelfile
from tests.helpers.golang import rendered_by_go

LOOP = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|assistant|>{% endif %}"


def go(jinja: str, *, bos: str = "<s>", adds_bos: bool = True) -> GoTemplate:
    return synthesize(jinja, bos_token=bos, eos_token="</s>", adds_bos=adds_bos)


def messages(*turns: str) -> list[dict[str, str]]:
    """Messages from `role: content`."""
    return [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns]


def rendered(template: GoTemplate, *turns: str) -> str:
    ((text,),) = rendered_by_go([(template.text, [messages(*turns)])])
    return text


def test_an_ordinary_template_has_no_limits() -> None:
    template = go(LOOP + PROMPT)
    assert template.limits == ()
    assert rendered(template, "system: a", "user: b") == "<|system|>a<|end|><|user|>b<|end|><|assistant|>"
    late = rendered(template, "user: a", "assistant: b", "system: c", "user: d")
    assert late == "<|user|>a<|end|><|assistant|>b<|end|><|system|>c<|end|><|user|>d<|end|><|assistant|>"


def test_an_answer_at_the_end_is_left_open_to_be_continued() -> None:
    assert rendered(go(LOOP + PROMPT), "user: a", "assistant: b") == "<|user|>a<|end|><|assistant|>b"


AWKWARD = '{{ .Content }} { {{{ }} {% """" ` \\n \\ \u3000\u00a0\u200b\ue000\U000e0001\r\x07 {'


def test_literal_braces_quotes_and_runes_that_do_not_print_survive_go_and_the_modelfile() -> None:
    literal = "".join(f"\\U{ord(rune):08x}" for rune in AWKWARD)
    template = go(f'{{% for m in messages %}}{{{{ "{literal}" + m.role }}}}{{{{ m.content }}}}{{% endfor %}}')
    assert rendered(template, "system: a", "user: {{ b }}") == f"{AWKWARD}systema{AWKWARD}user{{{{ b }}}}"
    text = write_modelfile(Modelfile(sources=("./model.gguf",), template=template.text))
    assert parse_modelfile(text).template == template.text


def test_the_default_system_message_is_written_if_there_is_no_other() -> None:
    template = go(BUILT_IN["chatml"].text)
    assert rendered(template, "user: a").startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>")
    assert rendered(template, "system: b", "user: a").startswith("<|im_start|>system\nb<|im_end|>\n<|im_start|>user\na")


FOLDED = (
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST]{% if loop.last and first %}{{ first }}: {% endif %}{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)


def test_a_system_message_is_written_into_the_last_turn() -> None:
    template = go(FOLDED)
    expected = "[INST]a[/INST]b</s>[INST]s: c[/INST]"
    assert rendered(template, "system: s", "user: a", "assistant: b", "user: c") == expected
    assert rendered(template, "user: a", "assistant: b", "user: c") == expected.replace("s: ", "")
    assert template.stops == ("</s>", "[INST]")


def test_without_a_place_for_system_messages_they_are_left_out_and_the_limits_say_so() -> None:
    template = go("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + LOOP + PROMPT)
    refusing = "{% for m in messages if m.role == 'system' %}{{ raise_exception('no system') }}{% endfor %}"
    strict = go(refusing + LOOP + PROMPT)
    assert template.limits == strict.limits
    assert "the template takes no system message at the start: one is left out" in strict.limits
    assert rendered(strict, "system: s", "user: a") == "<|user|>a<|end|><|assistant|>"
    joined = rendered(strict, "user: a", "system: s", "user: b")
    assert joined == "<|user|>a\n\nb<|end|><|assistant|>", "as Ollama joins neighbours of one role"


def test_the_bos_is_left_to_a_runtime_that_adds_it() -> None:
    jinja = "{{ bos_token }}" + LOOP + PROMPT
    assert rendered(go(jinja), "user: a").startswith("<|user|>")
    assert rendered(go(jinja, adds_bos=False), "user: a").startswith("<s><|user|>")


@pytest.mark.parametrize(
    ("jinja", "reason"),
    [
        ("Today is {{ strftime_now('%d %b %Y') }}." + LOOP, "today's date"),
        (LOOP.replace("m.content", "m.content | upper"), "altered"),
        (LOOP.replace("m.content", "m.content | tojson"), "depends on the contents"),
        (LOOP.replace("m.content", "m.content | replace('{', '(')"), "depends on the contents"),
        (LOOP.replace("m.role", "loop.index"), "not made of fixed texts"),
        (LOOP + "{{ messages | length > 7 }}", "number of messages"),
        (LOOP + "{{ messages[0].content }}", "moved or repeated"),
        ("{{ raise_exception('never') }}", "never"),
        ("{% for m in functions %}{{ m.name }}{% endfor %}" + LOOP[:10], "malformed"),
    ],
)
def test_what_a_go_template_cannot_write_is_refused_with_the_reason(jinja: str, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason):
        go(jinja)


def test_a_refusal_is_an_error_of_its_own() -> None:
    with pytest.raises(TemplateRefused):
        go(LOOP.replace("m.content", "m.content | upper"))


@pytest.mark.parametrize(
    ("jinja", "limit"),
    [
        (LOOP.replace("m.content", "m.content | trim"), "white space around a message is kept"),
        (LOOP.replace("m.content", "m.content.split('</think>')[-1]"), "a message that contains '</think>'"),
        (LOOP + "{% if tools %}{{ tools }}{% endif %}", "tools are left out"),
        (LOOP + "{% if enable_thinking %}!{% endif %}", "enable_thinking cannot be given"),
        (LOOP.replace("{{ m.content", "{{ m.content or 'nothing'"), "an empty message is not as in the Jinja template"),
    ],
)
def test_a_difference_for_some_messages_only_is_a_limit(jinja: str, limit: str) -> None:
    assert any(text.startswith(limit) for text in go(jinja).limits)


@pytest.mark.parametrize(
    ("name", "eos", "stops"),
    [
        ("huozi", "</s>", ("</s>", "<|endofutterance|>", "<|beginofutterance|>")),
        ("blossom", "<|endoftext|>", ("<|endoftext|>", "|Human|:")),
        ("baichuan2", "</s>", ("</s>", "<reserved_106>")),
        ("chatml", "<|endoftext|>", ("<|endoftext|>", "<|im_end|>", "<|im_start|>")),
        ("deepseek-v4", "<｜end▁of▁sentence｜>", ("<｜end▁of▁sentence｜>", "<｜User｜>")),
    ],
)
def test_stops_are_eos_the_end_of_an_answer_and_the_opening_of_a_question(
    name: str, eos: str, stops: tuple[str, ...]
) -> None:
    template = synthesize(BUILT_IN[name].text, bos_token="<s>", eos_token=eos, adds_bos=False)
    assert template.stops == stops


def test_a_model_that_closes_its_reasoning_as_its_answer_is_refused() -> None:
    with pytest.raises(TemplateRefused, match=r"writes <\|close\|> before its answer too"):
        synthesize(BUILT_IN["kimi-k3"].text, bos_token="", eos_token="<|end_of_msg|>", adds_bos=False)


def test_huozis_chinese_roles_come_out_as_its_jinja_template_writes_them() -> None:
    turns = ("system: 你是一个智能助手", "user: 你好", "assistant: 你好！", "user: 写一首诗")
    expected = render(BUILT_IN["huozi"].text, messages(*turns), bos_token="<s>", eos_token="</s>")
    assert "系统" in expected and "用户" in expected
    assert rendered(go(BUILT_IN["huozi"].text), *turns) == expected


@pytest.mark.full
def test_a_template_that_never_ends_is_an_error_after_seconds() -> None:
    with pytest.raises(TemplateError, match="5 s"):
        go("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}" + LOOP)
