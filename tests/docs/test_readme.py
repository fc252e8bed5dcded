"""The README is true: its commands run, its example is what comes out, its lists are the code's."""

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from quantkit.chat import BUILT_IN
from quantkit.gguf.file_types import FILE_TYPES
from tests.conversion.test_bytes import a_random_imatrix
from tests.helpers.command import Answer, quantkit
from tests.helpers.hub_server import Repo, running_hub
from tests.helpers.real import smollm2_or_skip
from tests.helpers.tiny import tiny_llama
from tools.readme_tables import with_tables

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
# Commands that calibrate do so on less text here; the last of an option given twice counts.
FEW_SAMPLES = ("--samples", "8", "--seq-len", "64")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Every shell line of the README, without its comment."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the README's names exist: FOLDER, MODEL-BF16.gguf, imatrix.gguf, text.jsonl, recipes."""
    folder = tmp_path_factory.mktemp("readme")
    tiny_llama(folder / "FOLDER", variant="llama3")
    assert quantkit("gguf", "FOLDER", "-t", "bf16", "-o", ".", cwd=folder).code == 0
    shutil.move(folder / "FOLDER-GGUF" / "FOLDER-BF16.gguf", folder / "MODEL-BF16.gguf")
    a_random_imatrix(folder / "imatrix.gguf", folder / "MODEL-BF16.gguf")
    (folder / "text.jsonl").write_text(a_text())
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    return folder


def a_text() -> str:
    """The README itself as calibration text: JSON lines, a paragraph each."""
    return "".join(json.dumps({"text": paragraph}) + "\n" for paragraph in README.split("\n\n"))


def run(words: list[str], place: Path) -> Answer:
    if not any("ORG/" in word for word in words):
        return quantkit(*words, cwd=place)
    with running_hub() as hub:
        hub.repos["ORG/NAME"] = Repo({path.name: path.read_bytes() for path in (place / "FOLDER").iterdir()})
        hub.repos["datasets/ORG/TEXTS"] = Repo({"validation.jsonl": a_text().encode(), "train.jsonl": b"{}\n"})
        env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(place / "hub")}
        return quantkit(*words, cwd=place, env=env)


@pytest.mark.parametrize("words", [words for words in commands() if words[0] == "quantkit"], ids=shlex.join)
def test_every_quantkit_command_of_the_readme_runs(words: list[str], place: Path) -> None:
    writes = words[1] in ("awq", "convert", "gguf", "gptq", "imatrix", "measure") and "--help" not in words
    calibrates = words[1] not in ("gguf", "measure") or any(
        word.startswith(("--calibrat", "--preset")) for word in words
    )
    more = (*(["--force"] if writes else []), *(FEW_SAMPLES if writes and calibrates else []))
    answer = run([*words[1:], *more], place)
    assert answer.code == 0, answer.stderr


def test_every_make_target_of_the_readme_exists() -> None:
    targets = [words[1] for words in commands() if words[0] == "make"]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_every_command_of_the_readme_is_one_this_file_knows() -> None:
    assert {words[0] for words in commands()} == {"quantkit", "make"}


def test_the_extras_the_readme_names_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = set(re.findall(r"\[(\w+)\]'", README)) | set(re.findall(r"extra `(\w+)`", README))
    assert named
    assert named <= set(extras)


def row(line: str) -> tuple[list[str], float]:
    """A table row as what is the same anywhere, and its logit correlation, whose last digits are the processor's."""
    cells = line.split()
    correlation = next((float(cell) for cell in cells if re.fullmatch(r"0\.\d{4}", cell)), 0.0)
    return re.sub(r"\d+\.\d s\b|0\.\d{4}", "", line).split(), correlation


def test_the_example_is_what_comes_out(tmp_path: Path) -> None:
    checkpoint = smollm2_or_skip()
    (example,) = blocks("console")
    command, *table = example.splitlines()
    words = shlex.split(command.removeprefix("$ "))
    assert words[:3] == ["quantkit", "gguf", checkpoint.name]
    answer = quantkit(*words[1:], "-o", tmp_path, cwd=checkpoint.parent)
    assert answer.code == 0, answer.stderr
    for shown, printed in zip(table, answer.stdout.splitlines(), strict=False):
        (shown_cells, shown_logits), (printed_cells, printed_logits) = row(shown), row(printed)
        assert shown_cells == printed_cells
        assert shown_logits == pytest.approx(printed_logits, abs=0.01)


def test_the_page_of_inspect_is_what_comes_out() -> None:
    checkpoint = smollm2_or_skip()
    (page,) = (block for block in blocks("text") if block.startswith("$ quantkit inspect"))
    command, printed = page.split("\n", 1)
    answer = quantkit(*shlex.split(command)[2:], cwd=checkpoint.parent)
    # The family's line names what it stands for, which grows with the families; the README need not follow.
    assert [line for line in answer.stdout.splitlines() if not line.startswith("family")] == [
        line for line in printed.splitlines() if not line.startswith("family")
    ]


def test_the_readme_names_every_built_in_template() -> None:
    paragraph = next(text for text in README.split("\n\n") if "`--chat-template` takes" in text)
    assert set(BUILT_IN) | {"none"} <= set(re.findall(r"`(\w+)`", paragraph))


def test_every_type_is_named() -> None:
    row = next(line for line in README.splitlines() if line.startswith("| types |"))
    assert set(re.findall(r"\b(?:i|t|mx|b)?[qf]p?\d\w*\b", row)) == set(FILE_TYPES)


def test_the_table_of_families_is_made_from_the_data() -> None:
    assert with_tables(README) == README, "run `make readme`"
