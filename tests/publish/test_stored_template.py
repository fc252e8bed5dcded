"""What Ollama stores in place of a chat template: foreseen by its own index, and read back after create."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantkit.errors import PublishError
from quantkit.publish.ollama.bundle import jinja_features, make_bundle
from quantkit.publish.ollama.facts import facts_of_gguf
from quantkit.publish.ollama.overrides import Overrides
from quantkit.publish.ollama.publication import foresee
from quantkit.publish.ollama.push import Created, Item, create_all
from quantkit.publish.ollama.rendering import COMMENT_CHARACTERS, IGNORED, renders_jinja
from quantkit.publish.ollama.server import Server
from quantkit.publish.ollama.tags import Name, plan_tags
from quantkit.publish.ollama.template_index import (
    MAX_DISTANCE,
    BuiltInTemplate,
    distance_under,
    read_index,
    replacement,
)
from tests.helpers.golang import program_with_index
from tests.helpers.ollama_server import CHATML, Ollama, edits, running_ollama
from tests.publish.gguf_files import write_gguf

# A ChatML that also changes the contents: no Go template can follow it, and Ollama's index takes it for plain ChatML.
NEAR = CHATML.jinja.replace("message['content']", "message['content'] | replace('a', 'b')")
WITH_TOOLS = "{% if tools %}{{ tools }}{% endif %}" + CHATML.jinja
WITH_THINKING = "{% if false %}<think></think>{% endif %}" + CHATML.jinja
INDEX = (BuiltInTemplate(CHATML.name, CHATML.jinja),)


@pytest.fixture
def ollama() -> Iterator[Ollama]:
    with running_ollama() as state:
        yield state


def item_of(folder: Path, template: str, overrides: Overrides | None = None) -> Item:
    facts = facts_of_gguf(write_gguf(folder / "m-Q4_0.gguf", template=template))
    plan = plan_tags(Name("m", "ns"), [("q4_0", ("m-Q4_0.gguf",))], size="4b")
    quantization = plan.quantizations[0]
    base = plan.name.tagged(quantization.tags[0])
    return Item(quantization, facts, make_bundle(facts, overrides or Overrides(), sources=["./m"], base=base))


def create(ollama: Ollama, item: Item) -> Created:
    plan = plan_tags(Name("m", "ns"), [("q4_0", ("m-Q4_0.gguf",))], size="4b")
    return create_all(Server(ollama.url), plan, [item])


def test_the_distance_under_a_limit_is_that_of_the_whole_table() -> None:
    chance = random.Random(5)
    for _ in range(3000):
        first = "".join(chance.choices("ab{%é", k=chance.randint(0, 14)))
        second = list(first)
        for _ in range(chance.randint(0, 8)):
            at = chance.randint(0, len(second))
            second[at : at + chance.randint(0, 2)] = chance.choices("ab{%é", k=chance.randint(0, 2))
        limit = chance.randint(1, 10)
        distance = edits(first, "".join(second))
        expected = distance if distance < limit else None
        assert distance_under(first, "".join(second), limit) == expected, (first, second, limit)


def test_the_distance_of_long_texts_is_exact_on_both_sides_of_the_limit() -> None:
    chance = random.Random(6)
    for changes in (0, 1, 60, 98, 99, 100, 101, 140):
        text = chance.choices("abcdefgh ", k=900)
        changed = list(text)
        for at in chance.sample(range(900), changes):
            changed[at] = "☃"
        assert distance_under("".join(text), "".join(changed), MAX_DISTANCE) == (changes if changes < 100 else None)


def test_the_index_is_read_out_of_a_program_that_go_compiled() -> None:
    program, index = program_with_index()
    expected = tuple(BuiltInTemplate(entry["name"], entry["template"]) for entry in json.loads(index))
    assert len(expected) > 1
    assert read_index(program) == expected


@pytest.mark.parametrize(
    "content", [b"", b"no index here", b'[\n  {\n    "template": "cut', b'[\n  {\n    "template": "x"\n  }\n]']
)
def test_a_program_without_an_index_gives_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ollama").write_bytes(content)
    assert read_index(tmp_path / "ollama") is None
    assert read_index(tmp_path / "gone") is None
    assert read_index(tmp_path) is None


def test_the_nearest_built_in_is_taken_and_the_first_of_equally_near_ones() -> None:
    index = (BuiltInTemplate("far", "x" * 90), BuiltInTemplate("near", "ab"), BuiltInTemplate("as near", "cb"))
    nearest = replacement("bb", index)
    assert nearest is not None and (nearest.name, nearest.distance) == ("near", 1)
    assert replacement("y" * 300, index) is None


def test_a_template_near_a_built_in_is_foreseen_before_anything_is_sent(ollama: Ollama, tmp_path: Path) -> None:
    (item,) = foresee([item_of(tmp_path, NEAR)], INDEX)
    assert item.bundle.template == "refused" and item.replacement is not None
    assert item.replacement.distance == edits(NEAR, CHATML.jinja) < 100
    with pytest.raises(PublishError, match=r"would store its built-in template 'chatml' for ns/m:4b-q4_0 in place of"):
        create(ollama, item)
    assert not ollama.models and not ollama.uploads()


def test_without_an_index_the_replacement_is_found_by_reading_back_what_was_stored(
    ollama: Ollama, tmp_path: Path
) -> None:
    with pytest.raises(PublishError) as caught:
        create(ollama, item_of(tmp_path, NEAR))
    assert "stored its built-in template 'chatml' for ns/m:4b-q4_0" in str(caught.value)
    assert f"add a Jinja comment of {COMMENT_CHARACTERS} characters" in str(caught.value)
    assert list(ollama.models) == ["ns/m:4b-q4_0"], "no further tag is made of it"


def test_a_built_in_that_the_server_stores_and_does_not_use_is_no_error(ollama: Ollama, tmp_path: Path) -> None:
    near_with_tools = NEAR + "{% if tools %}{% endif %}"
    (item,) = foresee([item_of(tmp_path, near_with_tools)], INDEX)
    assert item.replacement is not None
    create(ollama, item)
    assert ollama.layer("ns/m:latest", "template") == CHATML.go
    assert ollama.shown_template("ns/m:latest") == near_with_tools
    ollama.version = "0.29.1"
    with pytest.raises(PublishError, match="would store its built-in template 'chatml'"):
        create(ollama, item)


@pytest.mark.parametrize("version", ["0.29.1", "0.32.15", "0.33.1"])
def test_the_comment_that_the_message_names_keeps_the_template(ollama: Ollama, tmp_path: Path, version: str) -> None:
    ollama.version = version
    comment = "{#" + "kept as it is. ".ljust(COMMENT_CHARACTERS - 4, ".") + "#}"
    (item,) = foresee([item_of(tmp_path, comment + NEAR)], INDEX)
    assert item.replacement is None
    create(ollama, item)
    assert ollama.layer("ns/m:latest", "template") is None
    expected = comment + NEAR if version == "0.33.1" else "{{ .Prompt }}"
    assert ollama.shown_template("ns/m:latest") == expected


@pytest.mark.parametrize("version", ["0.12.6", "0.29.1", "0.30.0", "0.32.15", "0.33.0-rc2", "0.0.0"])
def test_an_exact_template_is_stored_by_every_server_though_a_built_in_is_near(
    ollama: Ollama, tmp_path: Path, version: str
) -> None:
    ollama.version = version
    created = create(ollama, item_of(tmp_path, CHATML.jinja))
    assert ollama.layer("ns/m:gpu", "template") != CHATML.go
    assert created.notes == []


@pytest.mark.parametrize("jinja", [WITH_TOOLS, WITH_THINKING])
@pytest.mark.parametrize(
    ("version", "ignored"), [("0.29.1", False), ("0.30.0", True), ("0.33.1", True), ("0.0.0", True)]
)
def test_a_template_beside_a_jinja_with_tools_or_thinking_counts_before_0_30_only(
    ollama: Ollama, tmp_path: Path, jinja: str, version: str, ignored: bool
) -> None:
    ollama.version, ollama.index = version, ()
    item = item_of(tmp_path, jinja)
    assert any("only Ollama before 0.30.0 uses TEMPLATE" in note for note in item.bundle.notes)
    assert create(ollama, item).notes == ([IGNORED] if ignored else [])
    assert (ollama.shown_template("ns/m:latest") == jinja) is ignored


def test_the_servers_own_setting_makes_a_template_count_again(ollama: Ollama, tmp_path: Path) -> None:
    ollama.go_template = True
    assert create(ollama, item_of(tmp_path, WITH_TOOLS)).notes == []


@pytest.mark.parametrize("chat_template", ["", "{% for m in messages %}{{ m['content'] }}|{% endfor %}"])
def test_another_template_than_the_files_own_fails_where_the_server_ignores_it(
    ollama: Ollama, tmp_path: Path, chat_template: str
) -> None:
    item = item_of(tmp_path, WITH_TOOLS, Overrides(chat_template=chat_template))
    assert any("convert the model with --chat-template to change that one" in note for note in item.bundle.notes)
    with pytest.raises(PublishError, match="ignores the chat template that was passed for ns/m:4b-q4_0"):
        create(ollama, item)
    ollama.version = "0.29.0"
    assert create(ollama, item).notes == []


def test_a_server_that_stores_something_else_is_found_out(
    ollama: Ollama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ollama, "shown_template", lambda self, name: "{{ .Prompt }} and more")
    with pytest.raises(PublishError, match="stored another template for ns/m:4b-q4_0 than was sent"):
        create(ollama, item_of(tmp_path, CHATML.jinja))


@pytest.mark.parametrize(
    ("jinja", "features"),
    [
        (CHATML.jinja, []),
        (WITH_TOOLS, ["tools"]),
        ("{{ message.tool_calls }}", ["tools"]),
        (WITH_THINKING, ["thinking"]),
        ("<think> alone", []),
        ("{{ content.split('</think>')[-1] }}", ["thinking"]),
        ("{{ content.split('</think>')[-1] }}{{ reasoning_content }}", []),
        ("{{ tools }}<think></think>", ["tools", "thinking"]),
    ],
)
def test_features_are_those_that_ollama_finds(jinja: str, features: list[str]) -> None:
    assert jinja_features(jinja) == features


@pytest.mark.parametrize(
    ("version", "new"),
    [("0.29.9", False), ("0.30.0", True), ("0.30.0-rc1", True), ("1.0", True), ("0.0.0", True), ("", True)],
)
def test_a_server_without_a_version_stamp_counts_as_new(version: str, new: bool) -> None:
    assert renders_jinja(version) is new


def test_the_command_foresees_by_the_program_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.cli.test_ollama import NAME, quantkit

    gguf = write_gguf(tmp_path / "m.gguf", template=NEAR)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "ollama"
    entry = {"template": CHATML.jinja, "name": "chatml"}
    program.write_bytes(b"\x7fELF..." + json.dumps([entry], indent=2).encode() + b"\0more")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    answer = quantkit("ollama", gguf, *NAME, "--dry-run", "--format", "json")
    assert "Ollama would store its built-in template 'chatml' in place of the GGUF's own" in answer.stderr
    assert json.loads(answer.stdout)["quantizations"][0]["replaced_by"] == "chatml"
    monkeypatch.setenv("PATH", os.fspath(tmp_path / "none"))
    answer = quantkit("ollama", gguf, *NAME, "--dry-run", "--format", "json")
    assert "is checked only after --create" in answer.stderr
    assert json.loads(answer.stdout)["quantizations"][0]["replaced_by"] is None
