"""The projector of a model that sees has the bytes of llama.cpp's converter, and leaves the one pass like every output.

The figures in golden/ are those of the newest converter (expected.py); test_converter.py runs it again.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantkit.api import ConvertOptions, convert
from quantkit.conversion import run as run_module
from quantkit.conversion.gguf_pass import run_pass
from quantkit.errors import CheckpointError, ReadError
from quantkit.families import open_model
from quantkit.families.pixtral import PROJECTOR as PIXTRAL
from quantkit.families.wrappers import PROJECTORS
from quantkit.files import partial_path
from quantkit.journal import Journal
from quantkit.outputs.projector import ProjectorRequest, plan_projectors, projector_types
from quantkit.progress import SILENT
from quantkit.verify.projector import verify_projectors
from tests.helpers.command import quantkit
from tests.vision.cases import NAMES
from tests.vision.expected import TYPES, describe, expected, write_checkpoint

DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no tower": (lambda config: config.pop("vision_config"), "config.json has no vision_config"),
    "another tower": (
        lambda config: config["vision_config"].update(hidden_size=64),
        "but config.json makes it",
    ),
    "a layer more": (lambda config: config["vision_config"].update(depth=4), "is missing from the checkpoint"),
    "a layer less": (lambda config: config["vision_config"].update(depth=2), "is beyond the 2 layers"),
    "three frames": (
        lambda config: config["vision_config"].update(temporal_patch_size=3),
        "temporal_patch_size is 3, but llama.cpp runs Qwen2-VL only with 2",
    ),
    "a text for a size": (lambda config: config["vision_config"].update(depth="3"), "must be a positive whole number"),
    "no patches": (lambda config: config["vision_config"].update(patch_size=0), "patch_size must be a positive"),
    "a small window": (
        lambda config: config["vision_config"].update(window_size=56),
        "window_size is 56, but llama.cpp runs Qwen2.5-VL only with 112",
    ),
    "uneven windows": (
        lambda config: config["vision_config"].update(fullatt_block_indexes=[1, 2]),
        "fullatt_block_indexes is [1, 2], but llama.cpp needs layers at equal distances",
    ),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("qwen2.5-vl", expected("qwen2.5-vl")["layout"], tmp_path_factory.mktemp("seeing"))


@pytest.mark.parametrize("name", NAMES)
def test_every_type_has_the_converters_bytes(name: str, tmp_path: Path) -> None:
    known = expected(name)
    folder = write_checkpoint(name, known["layout"], tmp_path)
    with open_model(str(folder)) as source:
        request = ProjectorRequest(projector_types(TYPES), tmp_path, name, threads=1)
        plan = plan_projectors(source, request)
        journal = Journal(tmp_path / "journal", "", [], force=False)
        run_pass(plan, journal, SILENT)
        journal.close()
        for item in verify_projectors(plan, replace(plan, outputs=())):
            assert not item.failed and len(item.checks) == 3
            ours = partial_path(tmp_path / f"mmproj-{name}-{item.output.type.label}.gguf")
            figures = known["files"][item.output.type.name]
            # the header says more than a hash
            assert describe(ours) == figures
            assert item.sha256 == {ours.name.removesuffix(".partial"): figures["sha256"]}


@pytest.mark.parametrize("name", ["mistral3", "pixtral"])
def test_names_of_the_hub_give_the_same_projector(name: str, tmp_path: Path) -> None:
    """The embedding of [IMG_BREAK] is in it; llama.cpp does not load the file without it (clip.cpp)."""
    known = expected(name)
    layout = {
        f"language_model.{key}" if key.startswith(("model.", "lm_head")) else key: shape
        for key, shape in known["layout"].items()
    }
    assert layout.keys() != known["layout"].keys()
    folder = write_checkpoint(name, layout, tmp_path, values=known["layout"])
    words = ("gguf", folder, "-t", "q8_0", "--mmproj", "f16", "-o", tmp_path, "--pre", "smollm", "--no-logits")
    answer = quantkit(*words)
    assert answer.code == 0, answer.stderr
    path = tmp_path / f"{name}-GGUF" / f"mmproj-{name}-F16.gguf"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == known["files"]["f16"]["sha256"]


def test_one_command_writes_the_text_model_and_its_projector(checkpoint: Path, tmp_path: Path) -> None:
    words = ("gguf", checkpoint, "-t", "f16", "--mmproj", "f16", "--mmproj", "q8_0", "-o", tmp_path, "--pre", "smollm")
    planned = quantkit(*words, "--dry-run", "--format", "json")
    assert planned.code == 0, planned.stderr
    answer = quantkit(*words, "--no-logits", "--format", "json")
    assert answer.code == 0, answer.stderr
    assert "they see images" not in answer.stderr
    folder = tmp_path / "qwen2.5-vl-GGUF"
    written = json.loads(answer.stdout)
    assert [Path(item["file"]).name for item in written["projectors"]] == [
        "mmproj-qwen2.5-vl-F16.gguf",
        "mmproj-qwen2.5-vl-Q8_0.gguf",
    ]
    assert [output["type"] for output in written["outputs"]] == ["f16"]
    record = json.loads((folder / "quantkit.json").read_text())["outputs"]
    for item, told in zip(written["projectors"], json.loads(planned.stdout)["projectors"], strict=True):
        path = Path(item["file"])
        assert item["bytes"] == told["bytes"] == path.stat().st_size
        assert item["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert item["sha256"] == expected("qwen2.5-vl")["files"][item["type"]]["sha256"]
        entry = record[path.stem]
        assert entry["type"] == f"{item['type']} projector"
        assert entry["origin"]["source"] == "qwen2.5-vl"
        assert [check["name"] for check in entry["checks"]][:3] == ["structure", "finite", "error"]
    again = quantkit(*words, "--no-logits")
    assert again.code == 1 and "already exists" in again.sentence


def test_a_checkpoint_that_sees_says_so_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    answer = quantkit("gguf", checkpoint, "-t", "q8_0", "-o", tmp_path, "--pre", "smollm", "--dry-run")
    (line,) = [line for line in answer.stderr.splitlines() if "see images" in line]
    assert "--mmproj" in line


def test_a_run_that_stops_in_the_projector_goes_on_there(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run finds the text model and the first tensors of the projector finished."""
    finished = Journal.finished
    options = ConvertOptions(mmproj=("f16",), pre="smollm", logits=False, threads=1)

    def stop(journal: Journal, name: str, *more: object) -> None:
        finished(journal, name, *more)  # type: ignore[arg-type]
        if name.startswith("v.blk.1"):
            raise ReadError("the disk was pulled out")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finished", stop)
        with pytest.raises(ReadError):
            convert(checkpoint, ["q8_0"], tmp_path, options)
    assert not list(tmp_path.rglob("*.gguf"))
    result = convert(checkpoint, ["q8_0"], tmp_path, options)
    assert result.resumed_tensors > len(result.plan.gguf.model.tensors)  # type: ignore[union-attr]
    assert result.resumed_tensors < sum(len(plan.model.tensors) for plan in result.plan.gguf_passes)
    path = tmp_path / "qwen2.5-vl-GGUF" / "mmproj-qwen2.5-vl-F16.gguf"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == expected("qwen2.5-vl")["files"]["f16"]["sha256"]


def test_a_projector_that_fails_its_check_is_set_aside(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(plan: Any, journal: Journal, progress: Any) -> dict[str, float]:
        seconds = run_pass(plan, journal, progress)
        for output in plan.outputs:
            if output.projector:
                with partial_path(output.folder / output.files[0].name).open("r+b") as file:
                    file.seek(output.files[0].slots[1].offset)
                    file.write(b"\xff" * 64)
        return seconds

    monkeypatch.setattr(run_module, "run_pass", damaged)
    words = ("gguf", checkpoint, "-t", "q8_0", "--mmproj", "f16", "-o", tmp_path, "--pre", "smollm", "--no-logits")
    answer = quantkit(*words)
    assert answer.code != 0 and "mmproj-F16 failed its check of finite" in answer.sentence
    names = sorted(path.name for path in (tmp_path / "qwen2.5-vl-GGUF").iterdir())
    assert names == ["mmproj-qwen2.5-vl-F16.gguf.failed", "quantkit.json", "qwen2.5-vl-Q8_0.gguf"]


@pytest.mark.parametrize("name", DAMAGES)
def test_a_tower_that_cannot_be_written_is_one_sentence(name: str, checkpoint: Path, tmp_path: Path) -> None:
    damage, sentence = DAMAGES[name]
    folder = shutil.copytree(checkpoint, tmp_path / "seeing")
    config = json.loads((folder / "config.json").read_text())
    damage(config)
    (folder / "config.json").write_text(json.dumps(config))
    answer = quantkit("gguf", folder, "-t", "q8_0", "--mmproj", "f16", "-o", tmp_path / "out", "--pre", "smollm")
    assert answer.code == 1 and sentence in answer.sentence, answer.stderr
    assert not list((tmp_path / "out").rglob("*.gguf*"))


@pytest.mark.usefixtures("libmtmd")
@pytest.mark.parametrize("whole", [True, False])
def test_llama_cpp_must_load_the_projector(whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not without the embedding of [IMG_BREAK], which the newest converter leaves out."""
    if not whole:
        rules = tuple(rule for rule in PIXTRAL.rules if rule.source != "embed_tokens.weight")
        monkeypatch.setitem(PROJECTORS, "LlavaForConditionalGeneration", replace(PIXTRAL, rules=rules))
    folder = write_checkpoint("pixtral", expected("pixtral")["layout"], tmp_path)
    result = convert(folder, ["q8_0"], tmp_path, ConvertOptions(mmproj=("f16",), pre="smollm"))
    (item,) = [item for item in result.outputs if item.output.label == "mmproj-F16"]
    (check,) = [check for check in item.checks if check.name == "load"]
    assert check.status == ("passed" if whole else "failed"), check.detail


@pytest.mark.parametrize(("place", "sentence"), [(None, "have no token [IMG_BREAK]"), (288, "has 288 rows")])
def test_a_tokenizer_without_the_token_of_the_projector_is_one_sentence(
    place: int | None, sentence: str, tmp_path: Path
) -> None:
    folder = write_checkpoint("mistral3", expected("mistral3")["layout"], tmp_path)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("[IMG_BREAK]", "[IMG_OTHER]"))
    if place is not None:
        config = folder / "tokenizer_config.json"
        settings = json.loads(config.read_text()) if config.exists() else {}
        settings["added_tokens_decoder"] = {str(place): {"content": "[IMG_BREAK]"}}
        config.write_text(json.dumps(settings))
    with open_model(str(folder)) as source, pytest.raises(CheckpointError) as raised:
        plan_projectors(source, ProjectorRequest(projector_types(["f16"]), tmp_path, "m"))
    assert sentence in str(raised.value)


def test_a_list_of_architectures_that_is_none_is_no_traceback(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "seeing")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": 7}))
    answer = quantkit("gguf", folder, "-t", "q8_0", "--mmproj", "f16", "-o", tmp_path, "--pre", "smollm", "--dry-run")
    assert answer.code == 0, answer.stderr
    assert "config.json names no architecture; Qwen2_5_VLForConditionalGeneration is taken" in answer.stderr


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (None, "give no image_mean, which the projector needs; copy the file of the image processor"),
        ({"image_mean": [0.5, 0.5]}, "image_mean is [0.5, 0.5], but it must be a list of three numbers"),
        ({"image_mean": [0.5, "a", 0.5]}, "image_mean must be a number"),
    ],
)
def test_an_image_processor_without_its_numbers_is_one_sentence(
    settings: dict[str, Any] | None, sentence: str, checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "seeing")
    (folder / "preprocessor_config.json").unlink()
    if settings is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    answer = quantkit("gguf", folder, "-t", "q8_0", "--mmproj", "f16", "-o", tmp_path / "out", "--pre", "smollm")
    assert answer.code == 1 and sentence in answer.sentence, answer.stderr


def test_the_memory_of_threads_does_not_change_a_byte(checkpoint: Path, tmp_path: Path) -> None:
    with open_model(str(checkpoint)) as source:
        request = ProjectorRequest(projector_types(["f16"]), tmp_path, "qwen2.5-vl", threads=2)
        plan = replace(plan_projectors(source, request), chunk_elements=5000)
        journal = Journal(tmp_path / "journal", "", [], force=False)
        run_pass(plan, journal, SILENT)
        journal.close()
    data = partial_path(tmp_path / "mmproj-qwen2.5-vl-F16.gguf").read_bytes()
    assert hashlib.sha256(data).hexdigest() == expected("qwen2.5-vl")["files"]["f16"]["sha256"]


def test_another_tower_is_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = write_checkpoint("pixtral", expected("pixtral")["layout"], tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["model_type"] = "dinov2"
    (folder / "config.json").write_text(json.dumps(config))
    answer = quantkit("gguf", folder, "-t", "q8_0", "--mmproj", "f16", "-o", tmp_path, "--pre", "smollm")
    assert answer.code == 1 and "but llama.cpp runs this model only with a pixtral tower" in answer.sentence
