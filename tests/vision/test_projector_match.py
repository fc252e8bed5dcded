"""Another model's projector: refused where no conversion makes such a pair, warned of where files state other names."""

import ast
import json
import re
from pathlib import Path

import pytest

from quantkit.gguf.projector_match import FREE_KINDS, OWN_ARCHITECTURES, TEXT_ARCHITECTURES, doubt, may_serve
from quantkit.gguf.reader import read_header
from tests.helpers.command import quantkit
from tests.helpers.peer import newest_converter
from tests.vision.headers import write_gguf

TOKENS = ["a", "b", "<|vision_start|>", "<start_of_image>", "<img>"]


def model(folder: Path, arch: str, *, tokens: list[str] = TOKENS, **keys: str) -> Path:
    sizes = {f"{arch}__embedding_length": 64, "tokenizer__ggml__tokens": tokens}
    return write_gguf(folder / "model-Q8_0.gguf", arch, general__type="model", **sizes, **keys)


def projector(folder: Path, kind: str, **keys: str) -> Path:
    sizes = {"clip__vision__projection_dim": 64, "clip__projector_type": kind}
    return write_gguf(folder / "mmproj-model-F16.gguf", "clip", general__type="mmproj", **sizes, **keys)


@pytest.mark.parametrize(
    ("arch", "kind"),
    [("gemma3", "qwen2vl_merger"), ("qwen2", "gemma3"), ("qwen2vl", "internvl"), ("llama", "qwen3vl_merger")],
)
def test_a_kind_of_another_architecture_is_refused_at_equal_width(arch: str, kind: str, tmp_path: Path) -> None:
    path, other = model(tmp_path, arch), projector(tmp_path, kind)
    (tmp_path / "image.png").write_bytes(b"not read")
    sentence = (
        f"mmproj-model-F16.gguf belongs to another model: its kind {kind} does not lead into a {arch} model like"
        " model-Q8_0.gguf; pass the projector of this model with --mmproj FILE"
    )
    ran = quantkit("run", path, "-p", "what?", "--image", tmp_path / "image.png", "--mmproj", other)
    assert ran.code == 2 and ran.sentence.endswith(sentence)
    published = quantkit("ollama", path, "--name", "a/b", "--size", "1b", "--chat-template", "none")
    assert published.code == 2 and published.sentence.endswith(sentence)
    assert not list(tmp_path.glob("Modelfile*"))


def test_files_that_state_other_names_are_doubted(tmp_path: Path) -> None:
    """Qwen2-VL-7B and Qwen2.5-VL-7B have the same architecture and width."""
    path = model(tmp_path, "qwen2vl", general__basename="Qwen2.5-VL")
    other = projector(tmp_path, "qwen2vl_merger", general__basename="Qwen2-VL")
    published = quantkit("ollama", path, "--name", "a/b", "--size", "1b", "--chat-template", "none")
    assert published.code == 0, published.stderr
    warning = "mmproj-model-F16.gguf states that it is of Qwen2-VL, but model-Q8_0.gguf of Qwen2.5-VL"
    assert warning in " ".join(published.stderr.split())
    own = projector(tmp_path, "qwen2.5vl_merger", general__basename="mmproj-qwen2.5-vl")
    assert doubt(read_header(path), read_header(own)) is None
    assert doubt(read_header(path), read_header(other)) is None, "the name of a file decides nothing"


def test_a_vocabulary_without_the_token_of_an_image_is_doubted(tmp_path: Path) -> None:
    other = read_header(projector(tmp_path, "internvl"))
    assert doubt(read_header(model(tmp_path, "qwen2")), other) is None
    text = doubt(read_header(model(tmp_path, "qwen2", tokens=["a", "b"])), other)
    assert text is not None and "the vocabulary of model-Q8_0.gguf lacks <img>" in text


def test_the_plan_does_not_count_a_projector_of_another_model(tmp_path: Path) -> None:
    from tests.vision.expected import expected, write_checkpoint

    checkpoint = write_checkpoint("gemma3", expected("gemma3")["layout"], tmp_path)
    assert quantkit("gguf", checkpoint, "-t", "q8_0", "--pre", "smollm", "-o", tmp_path).code == 0
    path = tmp_path / "gemma3-GGUF" / "gemma3-Q8_0.gguf"
    keys: dict[str, str | int] = {"clip__vision__projection_dim": 96, "clip__projector_type": "qwen2vl_merger"}
    write_gguf(path.with_name("mmproj-gemma3-F16.gguf"), "clip", general__type="mmproj", **keys)
    machine = ("--ram", "4G", "--vram", "none", "--bandwidth", "10G", "--format", "json")
    planned = json.loads(quantkit("plan", path, *machine).stdout)
    assert "projector" not in planned
    assert any("a projector is not counted: mmproj-gemma3-F16.gguf belongs to" in note for note in planned["notes"])
    asked = quantkit("plan", path, "--mmproj", "f16", *machine)
    assert asked.code == 2 and "its kind qwen2vl_merger does not lead into a gemma3 model" in asked.sentence


def test_architectures_that_the_gguf_package_does_not_know_are_not_refused() -> None:
    assert may_serve("qwen3vl_merger", "qwen9") and may_serve("a kind of tomorrow", "llama")
    assert not may_serve("mlp", "gemma4")


@pytest.mark.full
def test_every_pair_that_the_newest_converter_writes_is_accepted() -> None:
    """Its classes of projectors and of text models are registered under the same architectures of config.json."""
    pairs = _pairs(newest_converter().source)
    refused = sorted((kind, arch) for kind, arch in pairs if not may_serve(kind, arch))
    assert not refused
    assert {kind for kind, _ in pairs} >= set(TEXT_ARCHITECTURES)
    assert {arch for _, arch in pairs} >= set(OWN_ARCHITECTURES)
    assert not set(FREE_KINDS) & set(TEXT_ARCHITECTURES)


def _pairs(source: Path) -> set[tuple[str, str]]:
    """(kind of projector, architecture of the text model) for each architecture of config.json."""
    constants = (source / "gguf-py" / "gguf" / "constants.py").read_text()
    names = {f"MODEL_ARCH.{word}": text for word, text in re.findall(r'MODEL_ARCH\.(\w+): +"(.+?)"', constants)}
    (listed,) = re.findall(r"^class VisionProjectorType:\n((?:    .*\n)+)", constants, re.M)
    names |= {f"VisionProjectorType.{word}": text for word, text in re.findall(r'(\w+) += "(.+?)"', listed)}
    classes = {
        node.name: node
        for path in sorted((source / "conversion").glob("*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    kinds: dict[str, set[str]] = {}
    archs: dict[str, set[str]] = {}
    for name, node in classes.items():
        chain = _chain(classes, name)
        for registered in _registered(node):
            if any(item.name == "MmprojModel" for item in chain):
                kinds.setdefault(registered, set()).update(_values(chain, "VisionProjectorType", names))
            else:
                archs.setdefault(registered, set()).update(_values(chain, "MODEL_ARCH", names))
    return {(kind, arch) for name in kinds for kind in kinds[name] for arch in archs.get(name, ())}


def _chain(classes: dict[str, ast.ClassDef], name: str) -> list[ast.ClassDef]:
    """A class and its bases, the nearest first."""
    if name not in classes:
        return []
    bases = [ast.unparse(base).split(".")[-1] for base in classes[name].bases]
    return [classes[name], *(item for base in bases for item in _chain(classes, base))]


def _registered(node: ast.ClassDef) -> list[str]:
    calls = [item for item in node.decorator_list if isinstance(item, ast.Call)]
    return [str(word.value) for call in calls for word in call.args if isinstance(word, ast.Constant)]


def _values(chain: list[ast.ClassDef], enum: str, names: dict[str, str]) -> set[str]:
    """The values of gguf.`enum` in the first class of the chain that uses any; of MODEL_ARCH, the class's own alone."""
    for node in chain:
        own = (item.value for item in node.body if isinstance(item, ast.Assign))
        places = [node] if enum == "VisionProjectorType" else own
        words = {
            f"{enum}.{item.attr}"
            for place in places
            for item in ast.walk(place)
            if isinstance(item, ast.Attribute) and ast.unparse(item.value) == f"gguf.{enum}"
        }
        if words:
            return {names[word] for word in words}
    return set()
