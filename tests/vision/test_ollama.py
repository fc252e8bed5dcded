"""`ollama` with a projector: a second FROM line, a layer of its own on the server, sent once."""

import json
import shutil
from pathlib import Path

import pytest

from quantkit.api import ConvertOptions, convert
from tests.helpers.command import quantkit
from tests.helpers.ollama_server import running_ollama
from tests.vision.expected import expected, write_checkpoint

NAME = "qwen3-vl"
COMMON = ("--name", "ns/sees", "--chat-template", "none", "--size", "1b")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sees")
    checkpoint = write_checkpoint(NAME, expected(NAME)["layout"], root)
    options = ConvertOptions(mmproj=("f16", "q8_0"), pre="smollm", logits=False)
    convert(checkpoint, ["q8_0", "q4_0"], root, options)
    return root / f"{NAME}-GGUF"


@pytest.fixture
def folder(converted: Path, tmp_path: Path) -> Path:
    return shutil.copytree(converted, tmp_path / converted.name)


def test_every_modelfile_names_the_projector_last(folder: Path) -> None:
    answer = quantkit("ollama", folder, *COMMON, "--format", "json")
    assert answer.code == 0, answer.stderr
    for item in json.loads(answer.stdout)["quantizations"]:
        lines = [line for line in (folder / item["modelfile"]).read_text().splitlines() if line.startswith("FROM ")]
        assert lines == [f"FROM ./{item['files'][0]}", f"FROM ./mmproj-{NAME}-F16.gguf"]
        assert item["projector"] == str(folder / f"mmproj-{NAME}-F16.gguf")
    assert "left out" not in answer.stderr


def test_the_server_gets_the_projector_once(folder: Path) -> None:
    with running_ollama() as ollama:
        answer = quantkit("ollama", folder, *COMMON, "--push", "--insecure", "--host", ollama.url)
        assert answer.code == 0, answer.stderr
        models = [model for model in ollama.models.values() if any("model" in kind for kind, _ in model["layers"])]
        assert models
        for model in models:
            kinds = [kind.split(" ")[0] for kind, _ in model["layers"]]
            assert kinds.count("model") == kinds.count("projector") == 1
        assert ollama.uploads() == 3
        assert sum(kind.startswith("projector") for kind, _ in ollama.pushed_layers) == 1


def test_a_model_is_published_without_its_projector_by_request(folder: Path) -> None:
    answer = quantkit("ollama", folder, *COMMON, "--mmproj", "none", "--format", "json")
    assert answer.code == 0, answer.stderr
    for item in json.loads(answer.stdout)["quantizations"]:
        assert "mmproj" not in (folder / item["modelfile"]).read_text() and "projector" not in item


def test_a_projector_that_does_not_fit_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    known = expected("gemma3")
    checkpoint = write_checkpoint("gemma3", known["layout"], tmp_path)
    convert(checkpoint, ["q8_0"], tmp_path, ConvertOptions(mmproj=("f16",), pre="smollm", logits=False))
    other = tmp_path / "gemma3-GGUF" / "mmproj-gemma3-F16.gguf"
    answer = quantkit("ollama", folder, *COMMON, "--mmproj", other)
    assert answer.code == 2 and "mmproj-gemma3-F16.gguf belongs to another model" in answer.sentence
    answer = quantkit("ollama", other, *COMMON)
    assert answer.code == 1 and "is not a model" in answer.sentence
