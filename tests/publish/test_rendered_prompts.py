"""The prompts that the stand-in server renders of what quantkit published, and how it loads the tags."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quantkit.chat import BUILT_IN, render
from quantkit.publish.ollama.bundle import make_bundle
from quantkit.publish.ollama.facts import facts_of_gguf
from quantkit.publish.ollama.overrides import Overrides
from quantkit.publish.ollama.push import Item, create_all
from quantkit.publish.ollama.server import Server
from quantkit.publish.ollama.tags import Name, plan_tags
from tests.helpers.golang import parse_errors
from tests.helpers.ollama_runner import Host
from tests.helpers.ollama_server import CHATML, Ollama, running_ollama
from tests.publish.gguf_files import write_gguf

GB = 1 << 30
SPECIAL = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
"""Of write_gguf's files, which have no begin of text added."""
CONVERSATIONS = (
    [{"role": "user", "content": "Where is Harbin?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好，世界"}],
    [
        {"role": "user", "content": "First (1)"},
        {"role": "assistant", "content": "Second (2)"},
        {"role": "user", "content": "Third {{ 3 }}"},
    ],
)
TEMPLATES = {name: BUILT_IN[name].text for name in ("blossom", "huozi", "baichuan2")} | {
    "chatml": CHATML.jinja,
    "tools": "{% if tools %}{{ tools }}{% endif %}" + CHATML.jinja,
}


@pytest.fixture(scope="module", autouse=True)
def go() -> None:
    """Compile the Go oracle here, not while a request waits for it; without Go these tests are skipped."""
    assert parse_errors(["{{ .Prompt }}"]) == [""]


@pytest.fixture
def ollama() -> Iterator[Ollama]:
    with running_ollama() as state:
        yield state


def publish(ollama: Ollama, folder: Path, template: str | None) -> list[str]:
    """Create all tags of one GGUF; their full names."""
    facts = facts_of_gguf(write_gguf(folder / "m-Q4_0.gguf", template=template))
    plan = plan_tags(Name("m", "ns"), [("q4_0", ("m-Q4_0.gguf",))], size="4b")
    quantization = plan.quantizations[0]
    base = plan.name.tagged(quantization.tags[0])
    bundle = make_bundle(facts, Overrides(), sources=["./m"], base=base)
    create_all(Server(ollama.url), plan, [Item(quantization, facts, bundle)])
    return sorted(ollama.models)


def post(ollama: Ollama, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(f"{ollama.url}{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        document: dict[str, Any] = json.loads(answer.read().splitlines()[-1])
        return document


def prompt(ollama: Ollama, name: str, messages: list[dict[str, str]]) -> str:
    body = {"model": name, "messages": messages, "stream": False, "_debug_render_only": True}
    return str(post(ollama, "/api/chat", body)["_debug_info"]["rendered_template"])


@pytest.mark.parametrize("template", sorted(TEMPLATES))
@pytest.mark.parametrize("version", ["0.32.15", "0.29.0"])
def test_every_tag_is_prompted_as_the_checkpoints_own_template_says(
    ollama: Ollama, template: str, version: str, tmp_path: Path
) -> None:
    ollama.version = version
    names = publish(ollama, tmp_path, TEMPLATES[template])
    assert len(names) == 6
    for name in (names[0], "ns/m:gpu"):
        for messages in CONVERSATIONS:
            expected = render(TEMPLATES[template], messages, **SPECIAL)
            assert prompt(ollama, name, messages) == expected, name


def test_the_tags_of_one_gguf_share_a_runner_and_render_alike_whichever_is_loaded_first(
    ollama: Ollama, tmp_path: Path
) -> None:
    names = publish(ollama, tmp_path, TEMPLATES["blossom"])
    (messages, *_) = CONVERSATIONS
    for first in names:
        ollama.runners.clear()
        assert {prompt(ollama, name, messages) for name in (first, *names)} == {
            render(TEMPLATES["blossom"], messages, **SPECIAL)
        }
        assert len(ollama.runners) == 1


def test_a_tag_without_a_template_gets_chatml_from_the_runner_of_one_with_a_template(
    ollama: Ollama, tmp_path: Path
) -> None:
    """Seen on 0.32.15; why quantkit makes every tag of a GGUF in the same way."""
    publish(ollama, tmp_path, TEMPLATES["blossom"])
    file, digest = next(
        (kind.partition(" ")[2], digest)
        for kind, digest in ollama.models["ns/m:latest"]["layers"]
        if kind.startswith("model ")
    )
    post(ollama, "/api/create", {"model": "ns/bare", "files": {file: digest}})
    (messages, *_) = CONVERSATIONS
    own = render(TEMPLATES["blossom"], messages, **SPECIAL)
    assert prompt(ollama, "ns/bare", messages) == own
    ollama.runners.clear()
    assert prompt(ollama, "ns/m", messages) == own
    assert (
        prompt(ollama, "ns/bare", messages) == "<|im_start|>user\nWhere is Harbin?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.32.15", "<|im_start|>user\nWhere is Harbin?<|im_end|>\n<|im_start|>assistant\n"),
        ("0.29.0", "Where is Harbin?"),
    ],
)
def test_a_model_without_any_template_gets_chatml_or_a_bare_prompt(
    ollama: Ollama, version: str, expected: str, tmp_path: Path
) -> None:
    ollama.version = version
    digest = ollama.put(write_gguf(tmp_path / "m.gguf", template=None).read_bytes())
    post(ollama, "/api/create", {"model": "m", "files": {"m.gguf": digest}})
    assert prompt(ollama, "m", CONVERSATIONS[0]) == expected


@pytest.mark.parametrize(
    ("host", "layers", "warned"),
    [(Host(8 * GB, 99), 2, False), (Host(), 0, True), (Host(48 * GB, 2), 2, False)],
    ids=["fits", "no-gpu", "exactly"],
)
def test_a_gpu_tag_loads_every_layer_with_its_own_context(
    ollama: Ollama, host: Host, layers: int, warned: bool, tmp_path: Path
) -> None:
    ollama.host = host
    publish(ollama, tmp_path, TEMPLATES["blossom"])
    runner = ollama.loaded("ns/m:gpu")
    assert (runner.gpu_layers, runner.num_ctx) == (layers, 4096)
    assert bool(ollama.warnings) is warned


def test_a_gpu_tag_that_does_not_fit_fails_where_the_plain_one_spills(ollama: Ollama, tmp_path: Path) -> None:
    ollama.host = Host(2 * GB, 1)
    publish(ollama, tmp_path, TEMPLATES["blossom"])
    assert ollama.loaded("ns/m:latest").gpu_layers == 1
    with pytest.raises(urllib.error.HTTPError) as caught:
        prompt(ollama, "ns/m:gpu", CONVERSATIONS[0])
    assert caught.value.code == 500
    assert b"1 fit" in caught.value.read()


@pytest.mark.parametrize(("memory", "expected"), [(0, 4096), (24 * GB, 32768), (80 * GB, 262144)])
def test_a_model_without_num_ctx_gets_one_by_the_memory_and_ours_always_set_it(
    ollama: Ollama, memory: int, expected: int, tmp_path: Path
) -> None:
    ollama.host = Host(memory, 99)
    for name in publish(ollama, tmp_path, TEMPLATES["blossom"]):
        assert ollama.loaded(name).num_ctx == 4096
    digest = ollama.put(write_gguf(tmp_path / "m.gguf", extra=1).read_bytes())
    post(ollama, "/api/create", {"model": "m", "files": {"m.gguf": digest}})
    assert ollama.loaded("m:latest").num_ctx == expected


def test_deprecated_parameters_are_warned_about_and_ignored(ollama: Ollama, tmp_path: Path) -> None:
    digest = ollama.put(write_gguf(tmp_path / "m.gguf").read_bytes())
    body = {"model": "m", "files": {"m.gguf": digest}, "parameters": {"mirostat": 1, "use_mlock": True, "top_k": 5}}
    assert post(ollama, "/api/create", body) == {"status": "success"}
    assert ollama.layer("m:latest", "params")["top_k"] == 5
    assert not {"mirostat", "use_mlock"} & set(ollama.layer("m:latest", "params"))
    assert ollama.warnings == ["parameter mirostat is deprecated", "parameter use_mlock is deprecated"]
    with pytest.raises(urllib.error.HTTPError):
        post(ollama, "/api/create", {**body, "parameters": {"no_such": 1}})
