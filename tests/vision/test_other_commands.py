"""`plan` reserves the projector's memory; `inspect`, cards and recipes know the projector of a model that sees."""

import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.api import ConvertOptions, convert
from tests.helpers.command import quantkit
from tests.vision.expected import expected, write_checkpoint

NAME = "gemma3"
MACHINE = ("--ram", "4G", "--bandwidth", "10G,100G", "--format", "json")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sees")
    checkpoint = write_checkpoint(NAME, expected(NAME)["layout"], folder)
    convert(checkpoint, ["q8_0"], folder, ConvertOptions(mmproj=("f16",), pre="smollm", logits=False))
    return folder


def plan(*words: str | Path) -> dict[str, Any]:
    answer = quantkit("plan", *words, *MACHINE)
    assert answer.code == 0, answer.stderr
    document: dict[str, Any] = json.loads(answer.stdout)
    return document


def projector_of(root: Path) -> Path:
    return root / f"{NAME}-GGUF" / f"mmproj-{NAME}-F16.gguf"


def test_the_plan_of_a_checkpoint_counts_the_projector_to_the_byte(root: Path) -> None:
    size = projector_of(root).stat().st_size
    planned = plan(root / NAME, "-t", "q8_0", "--vram", "none", "--mmproj", "f16")
    assert planned["projector"] == {"file": projector_of(root).name, "bytes": size, "device": "CPU"}
    assert planned["commands"][0].endswith("-t q8_0 --mmproj f16")
    without = plan(root / NAME, "-t", "q8_0", "--vram", "none")
    assert "projector" not in without
    assert any("--mmproj f16 counts its projector too" in note for note in without["notes"])


def test_the_projector_takes_the_memory_that_the_model_lacks_then(root: Path) -> None:
    """The largest memory in which the model does not fit any more is larger by the size of the projector."""
    model = root / f"{NAME}-GGUF" / f"{NAME}-Q8_0.gguf"
    planned = plan(model, "--vram", "none")
    (row,) = planned["types"]
    assert planned["projector"]["bytes"] == projector_of(root).stat().st_size
    need = row["cpu_bytes"] + planned["projector"]["bytes"]
    for ram, fits in ((need + 1_000_000, True), (need - 100_000, False)):
        answer = quantkit("plan", model, "--vram", "none", "--ram", f"{ram / 1e6:.6f}M", *MACHINE[2:])
        assert json.loads(answer.stdout)["types"][0]["fits"] is fits
    assert "projector" not in plan(model, "--vram", "none", "--mmproj", "none")
    on_gpu = plan(model, "--vram", "8G")
    assert on_gpu["projector"]["device"] == "GPU"


def test_a_projector_that_is_not_there_is_one_sentence(root: Path) -> None:
    model = root / f"{NAME}-GGUF" / f"{NAME}-Q8_0.gguf"
    answer = quantkit("plan", model, "--mmproj", "bf16", *MACHINE)
    assert answer.code == 2 and "no projector of the type bf16 lies beside" in answer.sentence
    answer = quantkit("plan", root / NAME, "--mmproj", "q4_0", *MACHINE)
    assert answer.code == 2 and "a projector has no type 'q4_0'" in answer.sentence


def test_inspect_says_what_a_projector_is(root: Path) -> None:
    answer = quantkit("inspect", projector_of(root), "--format", "json")
    assert answer.code == 0, answer.stderr
    described = json.loads(answer.stdout)
    assert described["kind"] == "multimodal projector (GGUF)"
    words = "kind gemma3; images of 56 pixels in patches of 14; vectors of 96 values for the text model"
    assert words in described["notes"]


def test_inspect_says_how_a_model_that_sees_gets_its_projector(root: Path) -> None:
    answer = quantkit("inspect", root / NAME)
    assert answer.code == 0, answer.stderr
    assert "it sees images; quantkit gguf --mmproj f16 writes its projector" in " ".join(answer.stdout.split())


def test_a_card_says_how_the_model_sees(root: Path) -> None:
    answer = quantkit("card", root / f"{NAME}-GGUF")
    assert answer.code == 0, answer.stderr
    text = (root / f"{NAME}-GGUF" / "README.md").read_text()
    assert "pipeline_tag: image-text-to-text" in text
    assert f"llama-mtmd-cli -m {NAME}-Q8_0.gguf --mmproj mmproj-{NAME}-F16.gguf --image photo.jpg" in text


def test_a_recipe_bakes_the_projector(root: Path, tmp_path: Path) -> None:
    """And again when another type is added later."""
    recipe = tmp_path / "sees.toml"
    table = f'[model]\nname = "{NAME}"\nsource = "{root / NAME}"\nchat_template = "none"\n'
    table += '[formats]\nimatrix = false\nmmproj = "f16"\n'
    for types in ('["q8_0"]', '["q8_0", "q4_0"]'):
        recipe.write_text(f"{table}gguf = {types}\n")
        answer = quantkit("bake", recipe, "--only", "convert", "-o", tmp_path / "out")
        assert answer.code == 0, answer.stderr
    folder = tmp_path / "out" / f"{NAME}-GGUF"
    assert (folder / f"mmproj-{NAME}-F16.gguf").read_bytes() == projector_of(root).read_bytes()
    assert (folder / f"{NAME}-Q4_0.gguf").exists()
    recipe.write_text(table.replace('"f16"', '"q4_0"') + 'gguf = ["q8_0"]\n')
    answer = quantkit("bake", recipe, "--only", "convert", "-o", tmp_path / "other")
    assert answer.code != 0 and "mmproj of [formats] is 'q4_0', not f16, bf16 or q8_0" in answer.sentence
