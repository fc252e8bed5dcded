"""`--mmproj`: the bytes of the converter's own projector, in one run with the text model, and every way to refuse it.

The script stands for llama.cpp's converter (see test_converter.py); tests/full/test_mmproj.py runs the real one.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from demo.safetensors_file import write_safetensors
from quantkit import api
from quantkit.conversion import projector as projector_module
from quantkit.conversion import run as run_module
from quantkit.errors import OutputError
from quantkit.families.base.multimodal import has_tower
from quantkit.outputs.request import ConvertOptions
from tests.helpers.command import Answer, quantkit
from tests.helpers.small_converter import TOWER, write_converter
from tests.helpers.tiny import tiny_llama
from tests.vision.cases import NAMES
from tests.vision.expected import expected


def text_model(folder: Path) -> Path:
    return tiny_llama(folder, variant="llama3", hidden=64, intermediate=96, layers=1, shards=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tower that quantkit has no rules for."""
    folder = text_model(tmp_path_factory.mktemp("seeing") / "seeing")
    text = json.loads((folder / "config.json").read_text())
    config = {"architectures": ["JanusForConditionalGeneration"], "model_type": "janus", "text_config": text}
    (folder / "config.json").write_text(json.dumps(config))
    name = "model.vision_model.embeddings.patch_embedding.bias"
    write_safetensors(folder / "tower.safetensors", {name: ("F32", np.ones(8, np.float32))})
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"][name] = "tower.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def convert(checkpoint: Path, out: Path, *more: str | Path) -> Answer:
    return quantkit("gguf", checkpoint, "-t", "q8_0", "--no-logits", "-o", out, "--format", "json", *more)


def test_the_projector_has_the_converters_bytes_and_a_record(checkpoint: Path, tmp_path: Path) -> None:
    converter = write_converter(tmp_path / "converter", MAIN=TOWER)
    answer = convert(checkpoint, tmp_path, "--mmproj", "f16", "--mmproj", "bf16", "--converter", converter)
    assert answer.code == 0, answer.stderr
    assert "left out" not in answer.stderr
    folder = tmp_path / "seeing-GGUF"
    record = json.loads((folder / "quantkit.json").read_text())["outputs"]
    written = json.loads(answer.stdout)["projectors"]
    assert [Path(item["file"]).name for item in written] == ["mmproj-seeing-F16.gguf", "mmproj-seeing-BF16.gguf"]
    for item in written:
        alone = tmp_path / "alone.gguf"
        script = str(converter / "convert_hf_to_gguf.py")
        words = ["--outfile", str(alone), "--mmproj", "--outtype", item["type"]]
        subprocess.run([sys.executable, script, str(checkpoint), *words], check=True)
        assert Path(item["file"]).read_bytes() == alone.read_bytes()
        entry = record[Path(item["file"]).stem]
        assert entry["type"] == f"{item['type']} projector"
        assert entry["files"][Path(item["file"]).name]["sha256"] == item["sha256"]
        assert "convert_hf_to_gguf.py, sha256" in entry["origin"]["converter"]
    assert sorted(path.name for path in folder.glob("*.gguf")) == [
        "mmproj-seeing-BF16.gguf",
        "mmproj-seeing-F16.gguf",
        "seeing-Q8_0.gguf",
    ]
    again = convert(checkpoint, tmp_path, "--mmproj", "f16", "--converter", converter)
    assert again.code == 1 and "already exists" in again.sentence


def test_no_projector_is_left_when_the_text_model_fails(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OutputError("the disk is full")

    converter = write_converter(tmp_path / "converter", MAIN=TOWER)
    monkeypatch.setattr(run_module, "run_pass", full)
    answer = convert(checkpoint, tmp_path / "out", "--mmproj", "f16", "--converter", converter)
    assert answer.code == 1 and "the disk is full" in answer.sentence
    assert not list((tmp_path / "out").rglob("*.gguf"))
    monkeypatch.undo()
    # the finished projector is kept, so the rerun does not convert it again
    monkeypatch.setattr(projector_module, "_write", full)
    answer = convert(checkpoint, tmp_path / "out", "--mmproj", "f16", "--converter", converter)
    assert answer.code == 0, answer.stderr
    assert [path.name for path in sorted((tmp_path / "out").rglob("*.gguf*"))] == [
        "mmproj-seeing-F16.gguf",
        "seeing-Q8_0.gguf",
    ]


def test_the_api_writes_the_projector_too(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = shutil.copytree(checkpoint, tmp_path / "newest")
    config = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps({**config, "architectures": ["NewestForCausalLM"]}))
    monkeypatch.setenv("QUANTKIT_LLAMA_CPP", str(write_converter(tmp_path / "converter", MAIN=TOWER)))
    options = ConvertOptions(mmproj=("bf16",), logits=False)
    result = api.convert(unknown, ["q8_0"], tmp_path / "out", options)
    (projector,) = result.projectors
    assert projector.path.name == "mmproj-newest-BF16.gguf"
    assert hashlib.sha256(projector.path.read_bytes()).hexdigest() == projector.sha256


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("--mmproj", "q4_0"), 2, "a projector has no type 'q4_0'; pass one of f16, bf16, q8_0 to --mmproj"),
        (("--mmproj", "f16"), 2, "--mmproj needs llama.cpp's converter; pass a checkout of llama.cpp to --converter"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(
    words: tuple[str, ...], code: int, sentence: str, checkpoint: Path, tmp_path: Path
) -> None:
    answer = convert(checkpoint, tmp_path / "out", *words)
    assert answer.code == code and sentence in answer.sentence
    assert not list((tmp_path / "out").rglob("*.gguf"))


@pytest.mark.parametrize("command", [("gguf", "-t", "q8_0"), ("convert", "-t", "q8_0"), ("plan", "-t", "q8_0")])
def test_a_checkpoint_without_towers_says_so(command: tuple[str, ...], tmp_path: Path) -> None:
    plain = text_model(tmp_path / "plain")
    answer = quantkit(command[0], plain, *command[1:], "--mmproj", "f16")
    assert answer.code == 2 and "plain has no vision or audio tower; leave --mmproj out" in answer.sentence
    assert not list(tmp_path.rglob("*.gguf"))


@pytest.mark.parametrize("name", NAMES)
def test_every_checkpoint_that_sees_has_a_tower(name: str) -> None:
    layout = expected(name)["layout"]
    assert has_tower(layout)
    text = [key for key in layout if not re.search("vision|visual|audio|multi_modal|connector|mlp1", key)]
    assert text and not has_tower(text)


def test_a_tower_that_the_converter_does_not_know_is_its_own_sentence(checkpoint: Path, tmp_path: Path) -> None:
    failing = TOWER.replace("out = Path", "raise NotImplementedError('no tower')\n        out = Path", 1)
    converter = write_converter(tmp_path / "converter", MAIN=failing)
    answer = convert(checkpoint, tmp_path / "out", "--mmproj", "f16", "--converter", converter)
    assert answer.code == 1 and "no tower" in answer.sentence
    assert not list((tmp_path / "out").rglob("*.gguf"))


def test_a_gguf_has_no_projector(checkpoint: Path, tmp_path: Path) -> None:
    assert convert(checkpoint, tmp_path).code == 0
    answer = convert(tmp_path / "seeing-GGUF" / "seeing-Q8_0.gguf", tmp_path / "out", "--mmproj", "f16")
    assert answer.code != 0 and "--mmproj needs a checkpoint" in answer.sentence
