"""`quantkit serve` with real models: the text of `run`, tools, and the page in a real browser, by both servers."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.qwen_coder import qwen_coder_checkpoint
from demo.inputs import InputsUnavailable
from tests.helpers.chromium import headless_chromium
from tests.helpers.command import quantkit
from tests.helpers.late_import import imported_when_used
from tests.helpers.real import smollm2_or_skip
from tests.helpers.serving import Served, llama_server, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.full

openai = imported_when_used("openai")
pytest.importorskip("sse_starlette", reason="the server of llama-cpp-python (extra `serve`) is not installed")

SERVERS = ["llama-cpp-python", "llama-server"]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city now",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def converted(checkpoint: Path, kind: str, folder: Path) -> Path:
    assert quantkit("gguf", checkpoint, "-t", kind, "--no-logits", "-o", folder).code == 0
    (file,) = folder.rglob("*.gguf")
    return file


@pytest.fixture(scope="module")
def qwen_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        checkpoint = qwen_coder_checkpoint()
    except InputsUnavailable as error:
        pytest.skip(str(error))
    return converted(checkpoint, "q8_0", tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module", params=SERVERS)
def served(request: pytest.FixtureRequest, qwen_gguf: Path) -> Iterator[Served]:
    program = llama_server() if request.param == "llama-server" else None
    with serving(qwen_gguf, "--ctx", "1024", program=program) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with headless_chromium() as started:
        yield started


def client_of(served: Served) -> Any:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=300)


def test_the_answer_is_that_of_run_whole_and_as_a_stream(served: Served, qwen_gguf: Path) -> None:
    words = ("--temperature", "0", "--ctx", "1024", "-n", "24", "--format", "json", "--gpu-layers", "0")
    said = json.loads(quantkit("run", qwen_gguf, "-p", QUESTION[0]["content"], *words).stdout)["answer"]
    assert "Paris" in said
    client = client_of(served)
    request = {"model": "any", "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    assert client.chat.completions.create(**request).choices[0].message.content == said
    events = list(client.chat.completions.create(**request, stream=True))
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == said
    # it came in pieces
    assert len(events) > 5


def test_without_parameters_the_samplers_are_those_of_run_not_the_servers(served: Served) -> None:
    # top_k 1 of a request makes any temperature greedy: what the request names wins over the file's hints
    client = client_of(served)
    answers = {
        client.chat.completions.create(
            model="any", messages=QUESTION, max_tokens=12, temperature=2.0, extra_body={"top_k": 1}
        )
        .choices[0]
        .message.content
        for _ in range(3)
    }
    assert len(answers) == 1


def test_a_chat_in_the_page_streams_its_answer(served: Served, browser: "Browser", tmp_path: Path) -> None:
    page = browser.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    # both pages are served by the server itself: nothing else is asked
    outside: list[str] = []
    page.on("request", lambda request: outside.append(request.url) if not is_local(request.url, served) else None)
    page.goto(served.url)
    box = page.get_by_role("textbox").first
    box.fill(QUESTION[0]["content"])
    box.press("Enter")
    page.get_by_text("Paris").first.wait_for(timeout=120_000)
    page.wait_for_timeout(1000)
    page.screenshot(path=tmp_path / "page.png")
    assert not problems and not outside
    page.close()


def is_local(url: str, served: Served) -> bool:
    return url.startswith((served.url, "data:", "blob:"))


@pytest.fixture(scope="module")
def own_page(qwen_gguf: Path, browser: "Browser") -> Iterator["Page"]:
    with serving(qwen_gguf, "--ctx", "256", "--api-key", "secret", "--alias", "</script><b>m") as running:
        page = browser.new_page()
        page.goto(running.url)
        yield page
        page.close()


def test_the_small_page_shows_errors_as_text_takes_a_key_and_stops_an_answer(own_page: "Page") -> None:
    page = own_page
    assert page.locator("h1").inner_text() == "</script><b>m"
    box = page.get_by_label("Message")
    box.fill("<img src=x onerror=document.title='broken'> Hi")
    box.press("Enter")
    page.get_by_text("Invalid API key").wait_for()
    assert page.title() == "</script><b>m" and page.locator("img").count() == 0
    page.get_by_label("API key").fill("secret")
    page.get_by_label("API key").press("Tab")
    box.fill("word " * 400)
    box.press("Enter")
    page.get_by_text("more than the context of 256").wait_for()
    # the refused message is not part of the next request
    box.fill("Tell me a long story.")
    box.press("Enter")
    page.locator(".assistant").filter(has_text=" ").wait_for(timeout=60_000)
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Send").wait_for()


@pytest.mark.timeout(900)
def test_drafts_of_llama_server_are_those_of_run_and_change_no_answer(tmp_path: Path) -> None:
    assert quantkit("gguf", smollm2_or_skip(), "-t", "q8_0", "-t", "q2_k", "--no-logits", "-o", tmp_path).code == 0
    large, small = (next(tmp_path.rglob(f"*-{kind}.gguf")) for kind in ("Q8_0", "Q2_K"))
    texts = []
    for draft in ((), ("--draft", str(small))):
        with serving(large, "--ctx", "512", *draft, program=llama_server()) as running:
            answer = client_of(running).chat.completions.create(
                model="any", messages=QUESTION, temperature=0, max_tokens=48
            )
            texts.append(answer.choices[0].message.content)
            timings = answer.model_extra["timings"]
            assert running.end() == 0
    drafted, accepted = timings["draft_n"], timings["draft_n_accepted"]
    assert texts[0] == texts[1] and 0 < accepted < drafted
    assert f"{accepted} of {drafted} drafted tokens accepted ({accepted / drafted:.0%})" in running.written
    words = ("-p", QUESTION[0]["content"], "--temperature", "0", "-n", "48", "--ctx", "512", "--format", "json")
    ours = json.loads(quantkit("run", large, *words, "--draft", small).stdout)
    # the builds of llama.cpp round differently, so their answers may differ
    assert ours["accepted"] / ours["drafted"] == pytest.approx(accepted / drafted, abs=0.15)


# llama-server takes no named function, llama-cpp-python's server no "required"
CHOICES = {"llama-server": "required", "llama-cpp-python": {"type": "function", "function": {"name": "get_weather"}}}


@pytest.mark.parametrize("server", SERVERS)
def test_the_tools_of_a_request_reach_the_model_in_its_template(server: str, qwen_gguf: Path) -> None:
    program = llama_server() if server == "llama-server" else None
    with serving(qwen_gguf, "--ctx", "1024", program=program) as running:
        answer = client_of(running).chat.completions.create(
            model="any",
            messages=[{"role": "user", "content": "What is the weather in Paris?"}],
            tools=[WEATHER],
            tool_choice=CHOICES[server],
            temperature=0,
            max_tokens=64,
        )
    message = answer.choices[0].message
    if server == "llama-cpp-python":
        (call,) = message.tool_calls
        assert call.function.name == "get_weather"
        assert json.loads(call.function.arguments)["city"].startswith("Paris")
    else:
        # a model of 0.5B writes the call without the tags of its template, so the server may leave it in the text
        text = message.content or json.dumps([call.model_dump() for call in message.tool_calls])
        assert "get_weather" in text and "Paris" in text


def test_llama_server_returns_the_call_that_the_model_writes_in_its_template(tmp_path: Path) -> None:
    try:
        config = json.loads((qwen_coder_checkpoint() / "tokenizer_config.json").read_text("utf-8"))
    except InputsUnavailable as error:
        pytest.skip(str(error))
    (tmp_path / "tools.jinja").write_text(config["chat_template"], "utf-8")
    words = ("-t", "q8_0", "--no-logits", "--chat-template", tmp_path / "tools.jinja", "-o", tmp_path)
    assert quantkit("gguf", smollm2_or_skip(), *words).code == 0
    (model,) = tmp_path.rglob("*.gguf")
    # a model of 135M learns the form of a call from the conversation
    messages: list[dict[str, Any]] = []
    for city in ("Rome", "London", "Madrid"):
        function = {"name": "get_weather", "arguments": json.dumps({"city": city})}
        messages += [
            {"role": "user", "content": f"What is the weather in {city}?"},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": "1", "content": "sunny"},
            {"role": "assistant", "content": f"It is sunny in {city}."},
        ]
    messages.append({"role": "user", "content": "What is the weather in Paris?"})
    with serving(model, "--ctx", "1024", program=llama_server()) as running:
        body = json.dumps({"messages": messages, "tools": [WEATHER]}).encode()
        request = urllib.request.Request(f"{running.url}/apply-template", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as reply:
            prompt = json.loads(reply.read())["prompt"]
        assert "<tools>" in prompt and '"description": "The weather of a city now"' in prompt
        answer = client_of(running).chat.completions.create(
            model="any", messages=messages, tools=[WEATHER], temperature=0, max_tokens=48
        )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_weather" and json.loads(call.function.arguments) == {"city": "Paris"}
