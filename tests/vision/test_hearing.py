"""Projectors of models that only hear: libmtmd loads them; `run --image` and bad configs are one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command import Answer, quantkit
from tests.vision.cases import HEARING
from tests.vision.expected import expected, write_checkpoint

NAMES = [case.name for case in HEARING]


def converted(checkpoint: Path, out: Path) -> Answer:
    words = ("-t", "q8_0", "--mmproj", "f16", "-o", out, "--pre", "smollm", "--format", "json")
    return quantkit("gguf", checkpoint, *words)


@pytest.mark.usefixtures("libmtmd")
@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_loads_the_projector_and_run_says_that_it_only_hears(name: str, tmp_path: Path) -> None:
    answer = converted(write_checkpoint(name, expected(name)["layout"], tmp_path), tmp_path)
    assert answer.code == 0, answer.stderr
    folder = tmp_path / f"{name}-GGUF"
    entry = json.loads((folder / "quantkit.json").read_text())["outputs"][f"mmproj-{name}-F16"]
    load = next(check for check in entry["checks"] if check["name"] == "load")
    assert load["status"] == "passed", load
    (tmp_path / "image.png").write_bytes(b"not read")
    answer = quantkit("run", folder / f"{name}-Q8_0.gguf", "-p", "hi", "--image", tmp_path / "image.png")
    assert answer.code == 1 and "is the projector of a model that only hears" in answer.sentence


def test_other_commands_say_that_the_model_hears(tmp_path: Path) -> None:
    checkpoint = write_checkpoint("voxtral", expected("voxtral")["layout"], tmp_path)
    assert converted(checkpoint, tmp_path).code == 0
    folder = tmp_path / "voxtral-GGUF"
    assert "it hears audio; quantkit gguf --mmproj f16 writes its" in " ".join(
        quantkit("inspect", checkpoint).stdout.split()
    )
    described = quantkit("inspect", folder / "mmproj-voxtral-F16.gguf")
    assert described.code == 0 and "vectors of 64 values for the text model" in " ".join(described.stdout.split())
    planned = quantkit("plan", checkpoint, "--vram", "none", "--ram", "4G", "--bandwidth", "10G", "--format", "json")
    assert any("the model hears audio; --mmproj f16 counts" in note for note in json.loads(planned.stdout)["notes"])
    assert quantkit("card", folder).code == 0
    text = (folder / "README.md").read_text()
    assert "pipeline_tag: text-generation" in text and "--image" not in text


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "another activation": ({"activation_function": "relu"}, "activation_function is 'relu', but llama.cpp runs"),
    "another width": ({"intermediate_size": 112}, "intermediate_size is 112, but llama.cpp runs Voxtral's tower only"),
    "a layer more": ({"num_hidden_layers": 5}, "is missing from the checkpoint"),
    "other bins": ({"num_mel_bins": 16}, "but config.json makes it"),
}


@pytest.mark.parametrize("damage", REFUSALS)
def test_what_llama_cpp_does_not_run_is_one_sentence(damage: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint("voxtral", expected("voxtral")["layout"], tmp_path)
    settings, sentence = REFUSALS[damage]
    config = json.loads((checkpoint / "config.json").read_text())
    config["audio_config"].update(settings)
    (checkpoint / "config.json").write_text(json.dumps(config))
    answer = converted(checkpoint, tmp_path / "out")
    assert answer.code == 1 and sentence in answer.sentence
    assert not list((tmp_path / "out").rglob("*.gguf"))
