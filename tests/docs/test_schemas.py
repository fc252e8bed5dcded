"""The documents of a tiny model are what their schemas say, and no schema lies beside them unused."""

import json
import shutil
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from jsonschema import Draft202012Validator

from quantkit.cli import COMMANDS
from quantkit.measurement import costs
from quantkit.measurement.speed import SpeedTests
from quantkit.measurement.speed_rows import measure_speeds
from tests.helpers.adapters import AdapterCase, write_adapter
from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama
from tools.reference import FOLDER, PAGES
from tools.schemas import CONVERSION, SCHEMAS, schema

ROOT = Path(__file__).resolve().parents[2]
FEW = ("--samples", "8", "--seq-len", "64")
MEASURE = ("--text", "text.jsonl", "--ctx", "64", "--chunks", "2")

SERVING = "convert FOLDER -t fp8 -t fp8-block -t mlx-4bit -o serving"
LORA = "lora ADAPTER --base FOLDER"
MODELFILES = "ollama FOLDER-GGUF --name me/model -o modelfiles"

COMMANDS_TO_RUN = [
    ("conversion", "convert FOLDER -t awq -t gptq -t q4_0 -t imatrix --dry-run"),
    ("conversion", "gguf FOLDER -t bf16 -t q4_0 --dry-run"),
    ("conversion", SERVING),
    ("conversion", "convert FOLDER-AWQ -t w4a16 -o serving"),
    ("inspect", "inspect serving/FOLDER-MLX-4bit"),
    ("conversion", "gguf FOLDER --adapter ADAPTER -t q4_0 --dry-run"),
    ("lora", LORA),
    ("lora", "lora ADAPTER --base FOLDER -t f16 -t q8_0 --dry-run"),
    ("inspect", "inspect FOLDER"),
    ("inspect", "inspect FOLDER-GGUF"),
    ("inspect", "inspect FOLDER-GGUF/FOLDER-Q8_0.gguf"),
    ("inspect", "inspect FOLDER-GPTQ"),
    ("inspect", "inspect FOLDER-imatrix.gguf"),
    ("plan", "plan FOLDER --vram 2G --ctx 128"),
    ("plan", "plan FOLDER --ram 1M --vram 1M"),
    ("plan", "plan FOLDER-GGUF/FOLDER-Q8_0.gguf --ram 8G"),
    ("run", "run FOLDER-GGUF/FOLDER-Q8_0.gguf -p Hello --max-tokens 4"),
    ("card", "card FOLDER-GGUF --base-model ORG/NAME --license apache-2.0"),
    ("ollama", "ollama FOLDER-GGUF --name me/model --dry-run"),
    ("ollama", MODELFILES),
    ("ollama", "ollama --check modelfiles/Modelfile"),
    ("termux", "termux --gguf FOLDER-GGUF/FOLDER-Q8_0.gguf --model me/model -o phone.sh"),
    ("termux", "termux --gguf FOLDER-GGUF/FOLDER-Q8_0.gguf --model me/model --dry-run"),
    ("bake", "bake recipes/smollm2.toml --source FOLDER --dry-run"),
    (
        "bake",
        "bake recipes/smollm2.toml --source FOLDER --only convert --set calibration.samples=8"
        " --set calibration.seq_len=64 -o baked",
    ),
]

# A command or a file -> the command that makes what it reads. Any test may run first, or alone.
MADE_BY = {
    "inspect serving/FOLDER-MLX-4bit": SERVING,
    "ollama --check modelfiles/Modelfile": MODELFILES,
    "ADAPTER-GGUF/quantkit.json": LORA,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a text, recipes, and the outputs and report of the model."""
    folder = tmp_path_factory.mktemp("schemas")
    tiny_llama(folder / "FOLDER", variant="llama3", intermediate=256, layers=1)
    write_adapter(folder / "ADAPTER", folder / "FOLDER", AdapterCase())
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    pages = sorted((ROOT / "docs" / "guides").glob("*.md"))
    paragraphs = [paragraph for page in pages for paragraph in page.read_text("utf-8").split("\n\n")]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in paragraphs), "utf-8")
    convert = answer(
        folder, "convert", "FOLDER", "-t", "awq", "-t", "gptq", "-t", "q8_0", "-t", "imatrix", "--target-bpw", "7", *FEW
    )
    (folder / "convert.json").write_text(json.dumps(convert), "utf-8")
    models = ("FOLDER", "FOLDER-GGUF/FOLDER-Q8_0.gguf", "FOLDER-AWQ")
    short = partial(measure_speeds, tests=SpeedTests(n_prompt=64, n_generate=8, repetitions=2))
    with patch.object(costs, "measure_speeds", short):
        measured = answer(folder, "measure", *models, *MEASURE, "--speed")
    (folder / "measure.json").write_text(json.dumps(measured), "utf-8")
    return folder


@cache
def answer(folder: Path, *words: str) -> Any:
    """What a command prints with --format json. It runs once, because its outputs then exist."""
    done = quantkit(*words, "--format", "json", cwd=folder)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def errors(name: str, document: Any) -> list[str]:
    """What a document has against its schema."""
    problems = Draft202012Validator(schema(SCHEMAS[name][1])).iter_errors(document)
    return [f"{error.json_path}: {error.message[:300]}" for error in problems]


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_a_schema(name: str) -> None:
    Draft202012Validator.check_schema(schema(SCHEMAS[name][1]))


def test_every_command_has_a_schema() -> None:
    named = set(SCHEMAS) | set(CONVERSION["command"].values)
    assert set(COMMANDS) <= named


def test_no_schema_is_left_over() -> None:
    files = {f"schemas/{path.name}" for path in (FOLDER / "schemas").iterdir()}
    assert files == {name for name in PAGES if name.startswith("schemas/")}


@pytest.mark.parametrize(("name", "words"), COMMANDS_TO_RUN, ids=[words for _, words in COMMANDS_TO_RUN])
def test_a_document_of_a_command_is_what_its_schema_says(name: str, words: str, place: Path) -> None:
    if words in MADE_BY:
        answer(place, *MADE_BY[words].split())
    assert errors(name, answer(place, *words.split())) == []


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("conversion", "convert.json"),
        ("measure", "measure.json"),
        ("quantkit", "FOLDER-GGUF/quantkit.json"),
        ("quantkit", "FOLDER-AWQ/quantkit.json"),
        ("quantkit", "FOLDER-GPTQ/quantkit.json"),
        ("quantkit", "ADAPTER-GGUF/quantkit.json"),
        ("report", "FOLDER-report/report.json"),
    ],
)
def test_a_written_document_is_what_its_schema_says(name: str, file: str, place: Path) -> None:
    if file in MADE_BY:
        answer(place, *MADE_BY[file].split())
    assert errors(name, json.loads((place / file).read_text("utf-8"))) == []


def test_a_key_that_no_schema_names_is_an_error() -> None:
    card = {"command": "card", "folder": "a", "kind": "gguf", "card": "a/README.md"}
    assert errors("card", card) == []
    assert errors("card", card | {"more": 1})
    assert errors("card", {key: value for key, value in card.items() if key != "kind"})
