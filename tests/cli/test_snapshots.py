"""Every command's help, and the keys and types of its JSON documents, as they are stored in snapshots/.

`make snapshots` rewrites the stored texts; a change of a word or of a key is then read in the diff.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.cli import COMMANDS
from tests.helpers.adapters import AdapterCase, write_adapter
from tests.helpers.command import quantkit
from tests.helpers.serving import device_lister
from tests.helpers.tiny import tiny_llama
from tests.helpers.tiny_tokenizers import CORPUS
from tests.publish.gguf_files import write_gguf

SNAPSHOTS = Path(__file__).with_name("snapshots")
FEW = ("--samples", "8", "--seq-len", "32", "--raw", "--group-size", "32")
FEW_SAMPLES = ("--samples", "8", "--seq-len", "32", "--raw")
RECIPE = """
[model]
source = "./model"
name = "baked"
[formats]
gguf = ["q8_0"]
"""
DOCUMENTS: dict[str, tuple[str, ...]] = {
    "convert": ("convert", "model", "-t", "q4_k_m", "-t", "awq", "-t", "gptq", *FEW),
    "convert --dry-run": ("convert", "model", "-t", "q4_k_m", "-t", "awq", "-t", "gptq", *FEW, "--dry-run"),
    "gguf": ("gguf", "model", "-t", "q8_0", "-o", "gguf"),
    "gguf --dry-run": ("gguf", "model", "-t", "q8_0", "--dry-run"),
    "awq": ("awq", "model", "-o", "awq", *FEW),
    "awq --dry-run": ("awq", "model", "-o", "dry", *FEW, "--dry-run"),
    "gptq": ("gptq", "model", "-o", "gptq", *FEW),
    "gptq --dry-run": ("gptq", "model", "-o", "dry", *FEW, "--dry-run"),
    "imatrix": ("imatrix", "model", "-o", "imatrix.gguf", *FEW_SAMPLES),
    "imatrix --dry-run": ("imatrix", "model", "-o", "dry.gguf", *FEW_SAMPLES, "--dry-run"),
    "lora": ("lora", "adapter", "--base", "model"),
    "measure": ("measure", "model", "first-AWQ", "--text", "text.txt", "--ctx", "64", "--gpu-layers", "none"),
    "plan": ("plan", "model", "-t", "q8_0", "--vram", "8G", "--ram", "16G", "--bandwidth", "40G"),
    "run": ("run", "model.gguf", "-p", "Hello", "--max-tokens", "4", "--ctx", "256", "--raw", "--temperature", "0"),
    "serve": ("serve", "model.gguf", "--ctx", "256", "--dry-run"),
    "inspect a checkpoint": ("inspect", "model"),
    "inspect a GGUF": ("inspect", "model.gguf"),
    "inspect a folder of AWQ": ("inspect", "first-AWQ"),
    "inspect an importance matrix": ("inspect", "first.gguf"),
    "ollama": ("ollama", "small.gguf", "--name", "me/small", "-o", "plan"),
    "card": ("card", "cards"),
    "termux": ("termux", "--gguf", "model.gguf", "--chat-template", "chatml"),
    "bake": ("bake", "tiny.toml", "-o", "baked"),
    "bake --dry-run": ("bake", "tiny.toml", "-o", "planned", "--dry-run"),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint `model`, its GGUF file, AWQ folder and importance matrix, a text, a recipe."""
    folder = tmp_path_factory.mktemp("snapshots")
    tiny_llama(folder / "model", variant="llama3", hidden=64, intermediate=96)
    write_adapter(folder / "adapter", folder / "model", AdapterCase())
    (folder / "text.txt").write_text(CORPUS, "utf-8")
    (folder / "tiny.toml").write_text(RECIPE, "utf-8")
    write_gguf(folder / "small.gguf")
    write_gguf(folder / "cards" / "Small-Q4_0.gguf")
    for words in (
        ("gguf", "model", "-t", "f32", "--no-logits"),
        ("awq", "model", "--name", "first", *FEW),
        ("imatrix", "model", "-o", "first.gguf", *FEW_SAMPLES),
    ):
        answer = quantkit(*words, cwd=folder)
        assert answer.code == 0, answer.stderr
    (folder / "model-GGUF" / "model-F32.gguf").rename(folder / "model.gguf")
    return folder


@pytest.mark.parametrize("name", ["", *COMMANDS], ids=lambda name: name or "quantkit")
def test_the_help_is_the_stored_one(name: str, request: pytest.FixtureRequest) -> None:
    answer = quantkit(*filter(None, [name]), "--help")
    assert answer.code == 0, answer.stderr
    lines = [line.rstrip() for line in answer.stdout.splitlines()]
    compare(SNAPSHOTS / "help" / f"{name or 'quantkit'}.txt", "\n".join(lines).strip() + "\n", request)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_keys_and_types_of_the_document_are_the_stored_ones(
    name: str, here: Path, request: pytest.FixtureRequest
) -> None:
    env = device_lister(here) if name == "serve" else None
    answer = quantkit(*DOCUMENTS[name], "--format", "json", cwd=here, env=env)
    assert answer.code == 0, answer.stderr
    text = "".join(f"{path}: {' | '.join(sorted(types))}\n" for path, types in paths(json.loads(answer.stdout)).items())
    compare(SNAPSHOTS / "json" / f"{name.replace(' ', '-').lower()}.txt", text, request)


def test_every_command_has_a_document() -> None:
    assert {words[0] for words in DOCUMENTS.values()} == set(COMMANDS)


def test_no_snapshot_is_left_of_what_is_gone() -> None:
    stored = {str(path.relative_to(SNAPSHOTS).with_suffix("")) for path in SNAPSHOTS.rglob("*.txt")}
    helps = {f"help/{name}" for name in ("quantkit", *COMMANDS)}
    assert stored == helps | {f"json/{name.replace(' ', '-').lower()}" for name in DOCUMENTS}


def paths(value: Any, path: str = "", into: dict[str, set[str]] | None = None) -> dict[str, set[str]]:
    """The type names at every path of a JSON document, as in `outputs[].path`, in the document's order."""
    into = {} if into is None else into
    kind = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}.get(
        type(value), "number"
    )
    if path:
        into.setdefault(path, set()).add(kind)
    if isinstance(value, dict):
        for key, item in value.items():
            paths(item, f"{path}.{_key(key)}" if path else _key(key), into)
    elif isinstance(value, list):
        for item in value:
            paths(item, f"{path}[]", into)
    return into


def _key(key: str) -> str:
    """A key that is a tensor's, a file's or a module's name is data: `*`."""
    return key if key.isidentifier() else "*"


def compare(file: Path, text: str, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--write-snapshots"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    assert file.read_text("utf-8") == text, f"{file.name} is not what the command says; see `make snapshots`"
