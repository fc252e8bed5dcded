"""`quantkit serve` as clients and users meet it: the openai client, many clients at once, bad requests, its end.

The full suite runs every check with a real llama-server too. That one serves SmolLM2: it answers
with status 500 to what a tiny model of random weights writes. Streams are short, because over bytes that are not UTF-8
llama-cpp-python's server takes longer and longer.
"""

import importlib.util
import json
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from jsonschema import Draft202012Validator

from tests.helpers.command import quantkit, quantkit_forked, quantkit_here
from tests.helpers.late_import import imported_when_used
from tests.helpers.ports import free_port
from tests.helpers.real import smollm2_or_skip
from tests.helpers.serving import Served, device_lister, llama_server, serving
from tests.helpers.tiny import tiny_llama
from tools.schemas import SCHEMAS, schema

openai = imported_when_used("openai")
pytest.importorskip("sse_starlette", reason="the server of llama-cpp-python (extra `serve`) is not installed")

SERVERS = ["llama-cpp-python", pytest.param("llama-server", marks=pytest.mark.full)]
BOTH = ["llama-cpp-python", "llama-server"]
CONTEXT = 512
Models = Callable[[str], Path]


def program_of(server: str) -> Path | None:
    return llama_server() if server == "llama-server" else None


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The model that a server serves."""
    folder = tmp_path_factory.mktemp("serve")

    @cache
    def model_of(server: str) -> Path:
        if server == "llama-server":
            words = (smollm2_or_skip(), "-t", "q4_0", "--no-logits")
        else:
            tiny_llama(folder / "model", variant="llama3", dtype="f32")
            words = (folder / "model", "-t", "f32", "--chat-template", "chatml")
        assert quantkit("gguf", *words, "-o", folder / server).code == 0
        (file,) = (folder / server).rglob("*.gguf")
        return file

    return model_of


@pytest.fixture
def model(models: Models) -> Path:
    return models("llama-cpp-python")


@pytest.fixture(scope="module", params=SERVERS)
def served(request: pytest.FixtureRequest, models: Models) -> Iterator[Served]:
    words = ("--ctx", str(CONTEXT), "--alias", "tiny")
    with serving(models(request.param), *words, program=program_of(request.param)) as running:
        yield running


@pytest.fixture
def client(served: Served) -> Any:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=120)


def chat(client: Any, text: str, *, stream: bool = False, **options: Any) -> str:
    """The answer to one message, greedy."""
    request = {"model": "tiny", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8}
    answer = client.chat.completions.create(**{**request, **options}, stream=stream)
    if stream:
        return "".join(event.choices[0].delta.content or "" for event in answer if event.choices)
    return str(answer.choices[0].message.content)


def test_a_stop_word_ends_the_answer_before_it(client: Any) -> None:
    whole = chat(client, "Hello", max_tokens=24)
    word = whole[len(whole) // 2 : len(whole) // 2 + 2]
    request = [{"role": "user", "content": "Hello"}]
    answer = client.chat.completions.create(
        model="tiny", messages=request, temperature=0, max_tokens=24, stop=[word]
    ).choices[0]
    assert answer.finish_reason == "stop" and answer.message.content == whole[: whole.index(word)]


def test_the_model_has_its_alias(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_sixty_four_clients_at_once_each_get_the_answer_to_their_own_prompt(client: Any) -> None:
    texts = [f"Number {i % 4}" for i in range(64)]
    streams = [i % 8 < 4 for i in range(64)]
    # A stream of random bytes is not cut into characters as the whole answer is. How much of a prompt is in the cache
    # changes the order of sums, which can turn a near tie: each prompt follows itself, a similar and another one.
    expected: dict[tuple[str, bool], set[str]] = {}
    for i in range(8):
        for before in (texts[i], "Number 9", "Hello"):
            chat(client, before)
            expected.setdefault((texts[i], streams[i]), set()).add(chat(client, texts[i], stream=streams[i]))
    for stream in (False, True):
        assert len(set.union(*(expected[text, stream] for text in texts[:4]))) == sum(
            len(expected[text, stream]) for text in texts[:4]
        )
    answers: dict[int, str] = {}

    def ask(i: int) -> None:
        answers[i] = chat(client, texts[i], stream=streams[i])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, request in enumerate(zip(texts, streams, strict=True)):
        assert answers.get(i) in expected[request], (request, answers.get(i), expected[request])


def test_after_a_client_that_leaves_in_the_middle_the_next_one_is_answered(client: Any) -> None:
    expected = chat(client, "Hello")
    request = [{"role": "user", "content": "Go on"}]
    stream = client.chat.completions.create(model="tiny", messages=request, stream=True, max_tokens=100)
    next(iter(stream))
    stream.close()
    assert chat(client, "Hello") == expected


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_longer_than_the_context_is_a_bad_request_with_a_sentence(client: Any, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match=r"context") as refused:
        chat(client, "word " * CONTEXT, stream=stream)
    assert refused.value.status_code == 400
    assert str(CONTEXT) in str(refused.value)
    assert chat(client, "Hello")


def test_a_request_that_is_not_json_is_refused_and_the_server_goes_on(served: Served, client: Any) -> None:
    for body in (b"{", b"[]", b'{"messages": 3}'):
        request = urllib.request.Request(
            f"{served.url}/v1/chat/completions", body, {"Content-Type": "application/json"}
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        assert 400 <= refused.value.code <= 500
    assert chat(client, "Hello")


@pytest.mark.parametrize("server", SERVERS)
def test_ctrl_c_ends_the_server_and_a_port_that_it_uses_is_an_error(server: str, models: Models) -> None:
    with serving(models(server), "--ctx", "256", program=program_of(server)) as running:
        port = running.url.rpartition(":")[2]
        second = quantkit("serve", models(server), "--port", port, "--server", "llama-cpp-python")
        assert second.code == 2 and f"port {port} of 127.0.0.1 is in use" in second.sentence
        children = running.servers()
        assert children
        assert running.end() == 0
        assert "stopped" in running.written and "Traceback" not in running.written
        assert not [child for child in children if psutil.pid_exists(child.pid)]
    with socket.create_server(("127.0.0.1", int(port))):
        pass


@pytest.mark.full
@pytest.mark.parametrize("server", BOTH)
def test_the_death_of_the_server_is_told_and_it_dies_with_the_command(server: str, models: Models) -> None:
    with serving(models(server), "--ctx", "256", program=program_of(server)) as running:
        for child in running.servers():
            child.kill()
        assert running.process.wait(30) == 1
        assert "quantkit: the server stopped (signal SIGKILL)" in running.written
    with serving(models(server), "--ctx", "256", program=program_of(server)) as running:
        (child,) = running.servers()
        running.end(signal.SIGKILL)
        psutil.wait_procs([child], 20)
        assert not child.is_running()


@pytest.mark.full
@pytest.mark.parametrize("server", BOTH)
def test_a_key_is_asked_of_every_client_and_is_not_in_the_list_of_processes(server: str, models: Models) -> None:
    with serving(models(server), "--ctx", "256", "--api-key", "a-secret", program=program_of(server)) as running:
        url = f"{running.url}/v1"
        with pytest.raises(openai.AuthenticationError):
            chat(openai.OpenAI(base_url=url, api_key="wrong", max_retries=0), "Hello")
        assert chat(openai.OpenAI(base_url=url, api_key="a-secret", max_retries=0), "Hello")
        (child,) = running.servers()
        assert "a-secret" not in " ".join(child.cmdline())


@pytest.mark.full
@pytest.mark.parametrize("server", BOTH)
def test_a_file_that_llama_cpp_refuses_is_a_sentence(server: str, models: Models, tmp_path: Path) -> None:
    unknown = tmp_path / "unknown.gguf"
    unknown.write_bytes(models(server).read_bytes().replace(b"llama.block_count", b"llama.block_Count"))
    env = {"QUANTKIT_LLAMA_SERVER": str(program_of(server) or "")}
    answer = quantkit_forked("serve", unknown, "--port", str(free_port()), "--server", server, env=env)
    assert answer.code == 1 and "the server could not start (exit code 1)" in answer.sentence


def test_another_machine_needs_a_key(model: Path) -> None:
    answer = quantkit("serve", model, "--host", "0.0.0.0", "--server", "llama-cpp-python")
    assert answer.code == 2 and "--api-key" in answer.sentence
    answer = quantkit(
        "serve", model, "--host", "no.such.host.invalid", "--api-key", "k", "--server", "llama-cpp-python"
    )
    assert answer.code == 2 and "not an address of this machine" in answer.sentence


@pytest.mark.parametrize("host", ["x y", " "])
def test_a_host_that_is_no_address_is_refused(model: Path, host: str) -> None:
    answer = quantkit("serve", model, "--host", host, "--server", "llama-cpp-python")
    assert answer.code == 2 and f"--host {host!r} is not an address; pass 127.0.0.1" in answer.sentence


def test_an_empty_alias_is_refused(model: Path) -> None:
    answer = quantkit("serve", model, "--alias", " ", "--server", "llama-cpp-python", "--dry-run")
    assert answer.code == 2 and answer.sentence.startswith("quantkit: --alias ' ' is empty; give the model a name")


def test_without_a_server_the_error_names_both(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(model.parent))
    answer = quantkit_here("serve", model, "--server", "llama-server")
    assert answer.code == 1 and "llama-server is not on the PATH" in answer.sentence
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    answer = quantkit_here("serve", model)
    assert answer.code == 1 and "pip install 'quantkit[serve]'" in answer.sentence
    monkeypatch.setenv("QUANTKIT_LLAMA_SERVER", "/nowhere/llama-server")
    answer = quantkit_here("serve", model)
    assert answer.code == 2 and "/nowhere/llama-server" in answer.sentence


def test_dry_run_shows_the_command_of_llama_server_with_placement_and_context(model: Path, tmp_path: Path) -> None:
    env = device_lister(tmp_path)
    words = ("--dry-run", "--ctx", "256", "--parallel", "3", "--kv-type", "q8_0", "--port", str(free_port()))
    answer = quantkit_forked("serve", model, *words, env=env)
    assert answer.code == 0, answer.stderr
    line = answer.stdout.replace("\n", " ")
    layers = line.split("-ngl ")[1].split()[0]
    # all of a tiny model fits on the GPU that the program names
    assert int(layers) > 1 and "CUDA0 (21 GB free)" in answer.stderr
    assert "-c 768 -np 3" in line and "-ctk q8_0 -ctv q8_0" in line
    document = json.loads(quantkit_forked("serve", model, *words, "--format", "json", env=env).stdout)
    Draft202012Validator(schema(SCHEMAS["serve"][1])).validate(document)
    assert document["gpu_layers"] == int(layers) and document["n_ctx"] == 256


def test_a_draft_is_an_option_of_llama_server_only(model: Path, tmp_path: Path) -> None:
    words = ("--dry-run", "--ctx", "256", "--port", str(free_port()), "--draft", model, "--draft-tokens", "5")
    answer = quantkit_forked("serve", model, *words, env=device_lister(tmp_path))
    assert answer.code == 0, answer.stderr
    line = answer.stdout.replace("\n", " ")
    assert f"--spec-type draft-simple --spec-draft-n-max 5 -md {model} -devd CUDA0 -ngld 999" in line
    assert "the draft takes " in answer.stderr and "of CUDA0" in answer.stderr
    refused = quantkit_forked("serve", model, *words, "--server", "llama-cpp-python")
    assert refused.code == 2 and "llama-cpp-python's server drafts no tokens; remove --draft" in refused.sentence
