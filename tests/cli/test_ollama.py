"""`quantkit ollama` as a publisher meets it: a plan to read, files that parse, tags on a server, a sentence if not."""

import contextlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from quantkit.cli import main
from quantkit.publish.ollama.modelfile import lint_modelfile, parse_modelfile
from tests.helpers.command import Answer, working_folder
from tests.helpers.command import quantkit as quantkit_forked
from tests.helpers.ollama_server import Ollama, running_ollama
from tests.helpers.ports import free_port
from tests.publish.gguf_files import INEXACT, write_gguf

NAME = ("--name", "azure99/blossom-v5")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A NAME-GGUF folder of two quantizations."""
    write_gguf(tmp_path / "m-GGUF" / "m-Q4_0.gguf", sampling={"temp": 0.7})
    write_gguf(tmp_path / "m-GGUF" / "m-Q8_0.gguf", type="q8_0", extra=1)
    return tmp_path / "m-GGUF"


@pytest.fixture
def server() -> Iterator[Ollama]:
    with running_ollama() as state:
        yield state


def quantkit(*words: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> Answer:
    """The command in this process: starting one for each of these tests would take a minute."""
    stdout, stderr = io.StringIO(), io.StringIO()
    code = 0
    with (
        patch.object(sys, "argv", ["quantkit", *map(str, words)]),
        patch.dict(os.environ, {"COLUMNS": "80", **(env or {})}),
        working_folder(cwd or Path.cwd()),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            main()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 0
    return Answer(code, stdout.getvalue(), stderr.getvalue())


def at(server: Ollama) -> dict[str, str]:
    return {"OLLAMA_HOST": server.url.removeprefix("http://")}


def failed(answer: Answer, code: int = 1) -> str:
    assert answer.code == code, answer.stderr
    return answer.sentence


def test_a_folder_becomes_a_plan_and_two_modelfiles_each(folder: Path) -> None:
    answer = quantkit_forked("ollama", folder, *NAME, cwd=folder)
    assert answer.code == 0, answer.stderr
    assert answer.stdout.splitlines()[:3] == [
        "tag                             type  same as        from              ",
        "azure99/blossom-v5:4b-q4_0      q4_0                 Modelfile         ",
        "azure99/blossom-v5:4b           q4_0  = 4b-q4_0      Modelfile         ",
    ]
    assert "num_ctx is pinned to 4096; the model has 32768, --ctx sets another" in answer.stderr
    written = {path.name for path in folder.iterdir() if path.suffix != ".gguf"}
    assert written == {
        *("Modelfile", "Modelfile.gpu", "Modelfile.q8_0", "Modelfile.q8_0.gpu", "ollama-plan.toml"),
    }
    plain = parse_modelfile((folder / "Modelfile").read_text())
    assert plain.sources == ("./m-Q4_0.gguf",)
    assert dict(plain.parameters)["temperature"] == 0.7
    assert parse_modelfile((folder / "Modelfile.q8_0.gpu").read_text()).sources == ("azure99/blossom-v5:4b-q8_0",)


def test_every_option_of_a_publisher_arrives(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("Do as you like.\n")
    answer = quantkit(
        *("ollama", folder / "m-Q4_0.gguf", *NAME, "-o", tmp_path / "out", "--ctx", "8192", "--num-gpu", "20"),
        *(
            "--parameter",
            "top_k=50",
            "--parameter",
            "temperature=0.5",
            "--parameter",
            "stop=|Human|:",
            "--system",
            "Be brief.",
        ),
        *("--license", tmp_path / "LICENSE", "--message", "user=Hi", "--message", "assistant=Hello=there"),
        *("--chat-template", "blossom", "--size", "5b"),
    )
    assert answer.code == 0, answer.stderr
    text = (tmp_path / "out" / "Modelfile").read_text()
    made = parse_modelfile(text)
    assert made.sources == ("../m-GGUF/m-Q4_0.gguf",)
    parameters = [item for item in made.parameters if item[0] != "stop"]
    assert dict(parameters) == {"temperature": 0.5, "top_k": 50, "num_ctx": 8192, "num_gpu": 20}
    assert ("stop", "|Human|:") in made.parameters
    assert (made.system, made.licenses) == ("Be brief.", ("Do as you like.\n",))
    assert made.messages == (("user", "Hi"), ("assistant", "Hello=there"))
    assert made.template is not None and "|Bot|: " in made.template
    assert lint_modelfile(text) == []
    gpu = parse_modelfile((tmp_path / "out" / "Modelfile.gpu").read_text())
    assert gpu.sources == ("azure99/blossom-v5:5b-q4_0",)
    assert gpu.parameters == (("num_gpu", 999), ("num_ctx", 8192))


def test_a_refused_template_gives_a_warning_and_no_template_anywhere(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", template=INEXACT)
    answer = quantkit("ollama", tmp_path / "m.gguf", *NAME)
    assert answer.code == 0
    assert "warning: the tags get no TEMPLATE and need Ollama 0.30.0 or later" in answer.stderr
    for name in ("Modelfile", "Modelfile.gpu"):
        made = parse_modelfile((tmp_path / name).read_text())
        assert (made.template, made.requires) == (None, "0.30.0")


def test_a_strangers_template_cannot_reach_the_terminal(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", template="{{ raise_exception('\x1b]0;mine\x07') }}")
    answer = quantkit("ollama", tmp_path / "m.gguf", *NAME)
    assert "the tags get no TEMPLATE" in answer.stderr and r"\x1b]0;mine\x07" in answer.stderr
    assert "\x1b" not in answer.stderr + answer.stdout


def test_dry_run_writes_nothing_and_asks_no_server(folder: Path) -> None:
    before = sorted(folder.iterdir())
    answer = quantkit("ollama", folder, *NAME, "--dry-run", "--push", "--host", "127.0.0.1:9")
    assert answer.code == 0 and "azure99/blossom-v5:gpu" in answer.stdout
    assert sorted(folder.iterdir()) == before


def test_json_is_one_document_and_quiet_is_nothing(folder: Path, server: Ollama) -> None:
    answer = quantkit("ollama", folder, *NAME, "--create", "--format", "json", env=at(server))
    document = json.loads(answer.stdout)
    assert document["command"] == "ollama" and document["name"] == "azure99/blossom-v5"
    assert [quantization["type"] for quantization in document["quantizations"]] == ["q4_0", "q8_0"]
    assert document["quantizations"][0]["template"] == "exact"
    assert set(document["created"]) == set(server.models)
    assert [Path(path).name for path in document["written"]][-1] == "ollama-plan.toml"
    answer = quantkit("ollama", folder, *NAME, "--format", "quiet")
    assert (answer.code, answer.stdout, answer.stderr) == (0, "", "")


def test_an_edited_plan_is_what_happens(folder: Path, server: Ollama) -> None:
    assert quantkit("ollama", folder, *NAME).code == 0
    plan = folder / "ollama-plan.toml"
    edited = plan.read_text().replace('"4b-q4_0", "4b", "latest"', '"small"')
    edited = edited.replace('["4b-q4_0-gpu", "4b-gpu", "gpu"]', "[]").replace('["4b-q8_0-gpu"]', '["gpu"]')
    plan.write_text(edited)
    assert quantkit("ollama", "--plan", plan, "--create", "--force", env=at(server)).code == 0
    assert {name.split(":")[1] for name in server.models} == {"small", "4b-q8_0", "gpu"}
    assert server.layer("azure99/blossom-v5:gpu", "params")["num_gpu"] == 999
    assert plan.read_text() == edited
    assert parse_modelfile((folder / "Modelfile.q8_0.gpu").read_text()).sources == ("azure99/blossom-v5:4b-q8_0",)


def test_push_makes_and_pushes_every_tag_and_a_second_one_sends_nothing(folder: Path, server: Ollama) -> None:
    answer = quantkit("ollama", folder, *NAME, "--push", env=at(server))
    assert answer.code == 0, answer.stderr
    assert len(server.manifests) == 8
    assert "pushed azure99/blossom-v5:gpu" in answer.stdout.splitlines()
    sent, uploads = len(server.pushed_layers), server.uploads()
    assert uploads == 2
    again = quantkit("ollama", folder, *NAME, "--push", env=at(server))
    assert again.code == 0
    assert (len(server.pushed_layers), server.uploads()) == (sent, uploads)
    assert "were there already" in again.stderr


def test_what_is_on_the_server_is_what_the_modelfiles_say(folder: Path, server: Ollama) -> None:
    words = ("--system", 'Say "yes".', "--parameter", "stop=|Human|:")
    assert quantkit("ollama", folder, *NAME, "--create", "--host", server.url, *words).code == 0
    made = parse_modelfile((folder / "Modelfile").read_text())
    for tag in ("latest", "gpu"):
        name = f"azure99/blossom-v5:{tag}"
        assert server.layer(name, "template") == made.template
        assert server.layer(name, "system") == made.system == 'Say "yes".'
    stops = [value for name, value in made.parameters if name == "stop"]
    assert server.layer("azure99/blossom-v5:latest", "params")["stop"] == stops


def test_a_server_that_dies_in_an_upload_is_one_sentence_and_the_same_command_completes(
    folder: Path, server: Ollama
) -> None:
    server.die_after = 100
    sentence = failed(quantkit("ollama", folder, *NAME, "--push", env=at(server)))
    assert "went away after" in sentence and "of m-Q4_0.gguf" in sentence and "repeat the command" in sentence
    assert not server.models
    assert quantkit_forked("ollama", folder, *NAME, "--push", env=at(server)).code == 0
    assert len(server.manifests) == 8


def test_a_key_that_is_not_registered_is_one_sentence(folder: Path, server: Ollama) -> None:
    server.unknown_key = True
    sentence = failed(quantkit("ollama", folder, *NAME, "--push", env=at(server)))
    assert "this machine's key is not registered there" in sentence and "https://ollama.com/settings/keys" in sentence
    assert len(server.models) == 8


def test_no_server_is_one_sentence_and_the_modelfiles_are_written(folder: Path) -> None:
    port = free_port()
    sentence = failed(quantkit("ollama", folder, *NAME, "--create", "--host", f"127.0.0.1:{port}"))
    assert f"no Ollama server answers at http://127.0.0.1:{port}" in sentence and "`ollama serve`" in sentence
    assert (folder / "Modelfile").exists()


def test_an_old_server_gives_a_warning_if_it_matters(tmp_path: Path, server: Ollama) -> None:
    server.version = "0.12.6"
    write_gguf(tmp_path / "m.gguf", template=INEXACT)
    answer = quantkit("ollama", tmp_path / "m.gguf", *NAME, "--create", env=at(server))
    assert answer.code == 0
    assert "this server is Ollama 0.12.6, which ignores the GGUF's own template" in answer.stderr


def test_a_modelfile_edited_by_hand_is_overwritten_only_with_force(folder: Path) -> None:
    assert quantkit("ollama", folder, *NAME).code == 0
    (folder / "Modelfile").write_text("FROM mine\n")
    sentence = failed(quantkit("ollama", folder, *NAME))
    assert "Modelfile already exists with another content; overwrite it with --force" in sentence
    assert (folder / "Modelfile").read_text() == "FROM mine\n"
    assert quantkit("ollama", folder, *NAME, "--force").code == 0
    assert (folder / "Modelfile").read_text() != "FROM mine\n"


def test_a_recipe_gives_the_values_that_options_leave_out(folder: Path) -> None:
    recipe = Path(__file__).resolve().parents[2] / "recipes" / "blossom-v5-4b.toml"
    answer = quantkit("ollama", folder / "m-Q4_0.gguf", "--recipe", recipe, "--parameter", "top_k=7")
    assert answer.code == 0, answer.stderr
    made = parse_modelfile((folder / "Modelfile").read_text())
    assert "azure99/blossom-v5:latest" in answer.stdout
    parameters = {name: value for name, value in made.parameters if name != "stop"}
    assert parameters == {"temperature": 0.5, "top_p": 0.85, "top_k": 7, "repeat_penalty": 1.05, "num_ctx": 4096}
    assert made.system is not None and made.system.startswith("A chat between a human")


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("m-Q4_0.gguf",), 2, "--name NAMESPACE/MODEL is missing"),
        (NAME, 2, "no GGUF was named"),
        (("gone.gguf", *NAME), 1, "file gone.gguf not found; check the path"),
        (
            ("words.gguf", *NAME),
            1,
            "words.gguf is not a sound GGUF file: the magic is missing (byte 4); pass a GGUF file",
        ),
        (("bare.gguf", *NAME), 1, "bare.gguf has no chat template and none is known for it; give one with"),
        (("m-Q4_0.gguf", "--name", "my model"), 2, "the name 'my model' has a space"),
        (("m-Q4_0.gguf", "--name", "Azure99/Blossom"), 2, "capital letters, which ollama.com does not keep"),
        (("m-Q4_0.gguf", "--name", "ns/a..b"), 2, "'a..b'"),
        (("m-Q4_0.gguf", "--name", "blossom", "--push"), 2, "--push needs a namespace; write --name NAMESPACE/blossom"),
        (("m-Q4_0.gguf", *NAME, "--default", "q8_0"), 2, "--default q8_0 is not among the files, which are q4_0"),
        (("m-Q4_0.gguf", *NAME, "--default", "q99"), 2, "unknown quantization type 'q99'"),
        (("m-Q4_0.gguf", "again.gguf", *NAME), 2, "m-Q4_0.gguf, again.gguf are all q4_0"),
        (
            ("m-Q4_0.gguf", "large.gguf", *NAME),
            2,
            "the files are of several sizes: m-Q4_0.gguf (3.9B), large.gguf (34B)",
        ),
        (("m-Q4_0.gguf", *NAME, "--parameter", "temprature=1"), 2, "did you mean temperature?"),
        (("m-Q4_0.gguf", *NAME, "--parameter", "top_k=many"), 2, "takes a whole number, not 'many'"),
        (("m-Q4_0.gguf", *NAME, "--parameter", "mirostat=1"), 2, "deprecated"),
        (("m-Q4_0.gguf", *NAME, "--parameter", "num_ctx=0"), 2, "num_ctx 0 must be greater than zero"),
        (("m-Q4_0.gguf", *NAME, "--parameter", "stop="), 2, "stop is empty; give a text or leave it out"),
        (("m-Q4_0.gguf", *NAME, "--parameter", "top_k"), 2, "'top_k' is not NAME=VALUE"),
        (
            ("m-Q4_0.gguf", *NAME, "--parameter", "num_ctx=1", "--ctx", "2"),
            2,
            "--ctx and --parameter num_ctx set the same value",
        ),
        (
            ("m-Q4_0.gguf", *NAME, "--message", "bot=Hi"),
            2,
            "is not ROLE=TEXT; the role must be one of system, user, assistant",
        ),
        (("m-Q4_0.gguf", *NAME, "--license", "gone"), 2, "cannot read --license gone: No such file or directory"),
        (("m-Q4_0.gguf", *NAME, "--chat-template", "chatlm"), 2, "(did you mean chatml?)"),
        (("m-Q4_0.gguf", *NAME, "--size", "4 b"), 2, "'model:4 b'"),
        (("m-Q4_0.gguf", *NAME, "--create", "--host", "a:b"), 2, "the Ollama host 'a:b' is not an address"),
        (("m-Q4_0.gguf", *NAME, "--plan", "p.toml"), 2, "MODEL is in the plan p.toml already"),
        (("--plan", "gone.toml"), 2, "cannot read the plan gone.toml"),
        (("m-Q4_0.gguf", "--recipe", "gone.toml"), 2, "cannot read the recipe gone.toml"),
        (("m-Q4_0.gguf", *NAME, "--system", "全\u3000角"), 1, "U+3000"),
        (("empty", *NAME), 1, "empty holds no GGUF file"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    words: tuple[str, ...], code: int, sentence: str, folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    (place / "empty").mkdir(parents=True)
    shutil.copy(folder / "m-Q4_0.gguf", place)
    shutil.copy(folder / "m-Q4_0.gguf", place / "again.gguf")
    write_gguf(place / "large.gguf", size_label="34B", type="q8_0")
    write_gguf(place / "bare.gguf", template=None)
    (place / "words.gguf").write_text("not a GGUF")
    assert sentence in failed(quantkit("ollama", *words, cwd=place), code)
    assert not (place / "Modelfile").exists()


def test_a_system_message_that_no_modelfile_can_hold_is_sent_over_http(folder: Path, server: Ollama) -> None:
    words = ("ollama", folder, *NAME, "--system", "全\u3000角")
    refused = failed(quantkit(*words))
    assert "U+3000 (IDEOGRAPHIC SPACE)" in refused and "publish with `quantkit ollama --create`" in refused
    answer = quantkit(*words, "--create", env=at(server))
    assert answer.code == 0, answer.stderr
    assert "warning: Modelfile is not written: SYSTEM has U+3000" in answer.stderr
    assert server.layer("azure99/blossom-v5:gpu", "system") == "全\u3000角"
    assert not (folder / "Modelfile").exists() and (folder / "Modelfile.gpu").exists()


def test_check_is_clean_for_what_it_wrote_itself_and_finds_what_is_wrong(folder: Path) -> None:
    assert quantkit("ollama", folder, *NAME).code == 0
    for name in ("Modelfile", "Modelfile.gpu", "Modelfile.q8_0"):
        answer = quantkit("ollama", "--check", folder / name)
        assert (answer.code, answer.stdout) == (0, "")
    bad = folder / "Bad"
    bad.write_text("FROM ./m-Q4_0.gguf\nPARAMETER temprature 1\nPARAMETER mirostat 1\n")
    answer = quantkit("ollama", "--check", bad)
    assert f"{bad} has 2 findings" in failed(answer)
    lines = answer.stdout.splitlines()
    assert lines[0].startswith(f"{bad}:2: error: ") and "temperature" in lines[0]
    assert lines[1].startswith(f"{bad}:3: warning: ") and "mirostat" in lines[1]
    document = json.loads(quantkit("ollama", "--check", bad, "--format", "json").stdout)
    assert [(finding["line"], finding["severity"]) for finding in document["findings"]] == [
        (2, "error"),
        (3, "warning"),
    ]


def test_check_of_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    assert "cannot read gone: No such file" in failed(quantkit("ollama", "--check", "gone", cwd=tmp_path), 2)
    (tmp_path / "Latin").write_bytes(b"SYSTEM caf\xe9\n")
    assert "Latin is not UTF-8 text (byte 10)" in failed(quantkit("ollama", "--check", "Latin", cwd=tmp_path))


def test_a_file_in_place_of_the_folder_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sentence = failed(quantkit("ollama", folder, *NAME, "-o", tmp_path / "file"), 2)
    assert f"-o {tmp_path / 'file'} is a file, not a folder" in sentence


def test_the_help_fits_80_columns() -> None:
    text = quantkit("ollama", "--help").stdout
    assert "--name" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_file_is_found_from_any_folder(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    relative = os.path.relpath(folder / "m-Q4_0.gguf", place)
    assert quantkit("ollama", relative, *NAME, "-o", "out", cwd=place).code == 0
    (source,) = parse_modelfile((place / "out" / "Modelfile").read_text()).sources
    assert (place / "out" / source).resolve() == (folder / "m-Q4_0.gguf").resolve()
