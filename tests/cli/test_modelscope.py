"""modelscope:ORG/NAME as SOURCE of the commands, against a small ModelScope on the loopback interface."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.command import quantkit, quantkit_process
from tests.helpers.hub_server import Hub, Repo, closed_port, running_hub
from tests.helpers.modelscope_server import modelscope_handler
from tests.helpers.tiny import tiny_llama

REPO = "some-org/Tiny"
SOURCE = f"modelscope:{REPO}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("source") / "Tiny", variant="llama3", shards=2)


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    with running_hub(modelscope_handler) as running:
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        running.repos[REPO] = Repo(files, revisions=("master",))
        yield running


def environment(hub: Hub, home: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": closed_port(),
        "MODELSCOPE_ENDPOINT": hub.endpoint,
        "MODELSCOPE_CACHE": str(home / "cache"),
        "MODELSCOPE_HOME": str(home / "settings"),
    }


def weights_sent(hub: Hub) -> int:
    return sum(served.sent for served in hub.requests if "/store/" in served.path)


def test_a_conversion_writes_the_same_bytes_as_from_the_folder_and_names_its_origin(
    hub: Hub, folder: Path, tmp_path: Path
) -> None:
    words = ("-t", "q8_0", "--no-logits")
    assert quantkit("gguf", folder, *words, "-o", tmp_path / "ours").code == 0
    assert quantkit("gguf", SOURCE, *words, "-o", tmp_path, env=environment(hub, tmp_path)).code == 0
    name = "Tiny-GGUF/Tiny-Q8_0.gguf"
    assert (tmp_path / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()
    record = json.loads((tmp_path / "Tiny-GGUF/quantkit.json").read_text())
    assert f'"source": "{SOURCE}"' in json.dumps(record)
    assert quantkit("card", tmp_path / "Tiny-GGUF").code == 0
    card = (tmp_path / "Tiny-GGUF/README.md").read_text()
    assert f"(https://modelscope.cn/models/{REPO})" in card and "base_model:" not in card


@pytest.mark.parametrize("command", [("inspect",), ("plan", "--ram", "16G"), ("awq", "--dry-run")])
def test_commands_that_read_headers_fetch_no_weights(hub: Hub, tmp_path: Path, command: tuple[str, ...]) -> None:
    answer = quantkit(*command, SOURCE, "--format", "json", env=environment(hub, tmp_path), cwd=tmp_path)
    assert answer.code == 0, answer.stderr
    headers = sum(8 + int.from_bytes(data[:8], "little") for name, data in _weights(hub))
    assert weights_sent(hub) == headers


def _weights(hub: Hub) -> list[tuple[str, bytes]]:
    return [(name, data) for name, data in hub.repos[REPO].files.items() if name.endswith(".safetensors")]


def test_measure_takes_a_modelscope_id(hub: Hub, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words " * 400)
    options = ("--text", text, "--ctx", "32", "--chunks", "2", "--gpu-layers", "none", "-o", tmp_path / "report")
    answer = quantkit("measure", SOURCE, *options, env=environment(hub, tmp_path))
    assert answer.code == 0, answer.stderr


def test_a_recipe_takes_a_modelscope_id(hub: Hub, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(f'version = 1\n[model]\nname = "tiny"\nsource = "{SOURCE}"\n[formats]\ngguf = ["q8_0"]\n')
    answer = quantkit("bake", recipe, "-o", tmp_path / "out", "--dry-run", env=environment(hub, tmp_path))
    assert answer.code == 0, answer.stderr
    assert SOURCE in answer.stdout


def test_a_mirror_replaces_the_hub_and_a_wrong_address_is_refused(folder: Path, tmp_path: Path) -> None:
    with running_hub() as mirror:
        mirror.repos[REPO] = Repo({path.name: path.read_bytes() for path in folder.iterdir()})
        # a new process, because the hub's client reads its address when it is imported
        answer = quantkit_process(
            "inspect",
            REPO,
            "--mirror",
            mirror.endpoint + "/",
            env={"HF_HOME": str(tmp_path), "HF_ENDPOINT": closed_port()},
        )
        assert answer.code == 0 and "Tiny" in answer.stdout, answer.stderr
        assert mirror.requests
    answer = quantkit("inspect", REPO, "--mirror", "nowhere")
    assert answer.code == 2 and "--mirror 'nowhere' is not a web address; write https://HOST" in answer.sentence
