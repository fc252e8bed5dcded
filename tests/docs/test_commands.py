"""The documentation is true: its commands run, its examples are what comes out, its lists are the code's."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from quantkit.chat import BUILT_IN
from quantkit.system.python import tomllib
from tests.conversion.test_bytes import a_random_imatrix
from tests.helpers.adapters import AdapterCase, write_adapter
from tests.helpers.command import Answer, quantkit, quantkit_process
from tests.helpers.hub_server import Repo, running_hub
from tests.helpers.real import smollm2_or_skip
from tests.helpers.tiny import tiny_llama

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
# Commands that calibrate do so on less text here; the last of an option given twice counts.
FEW_SAMPLES = ("--samples", "8", "--seq-len", "64")


def blocks(language: str, pages: Sequence[Path] = PAGES) -> list[str]:
    texts = [page.read_text("utf-8") for page in pages]
    return [block for text in texts for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)]


def commands(pages: Sequence[Path] = PAGES) -> list[list[str]]:
    """Every shell line of the pages once, without its comment."""
    lines = [line for block in blocks("sh", pages) for line in block.splitlines()]
    unique = dict.fromkeys(tuple(shlex.split(line, comments=True)) for line in lines)
    return [list(words) for words in unique if words]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the names of the pages: FOLDER, ADAPTER, MODEL-BF16.gguf, imatrix.gguf, text.jsonl, recipes."""
    folder = tmp_path_factory.mktemp("readme")
    tiny_llama(folder / "FOLDER", variant="llama3", intermediate=256, layers=1)
    assert quantkit("gguf", "FOLDER", "-t", "bf16", "-o", ".", cwd=folder).code == 0
    shutil.move(folder / "FOLDER-GGUF" / "FOLDER-BF16.gguf", folder / "MODEL-BF16.gguf")
    a_random_imatrix(folder / "imatrix.gguf", folder / "MODEL-BF16.gguf")
    write_adapter(folder / "ADAPTER", folder / "FOLDER", AdapterCase())
    (folder / "text.jsonl").write_text(a_text())
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    return folder


def a_text() -> str:
    """The guides as calibration text: JSON lines, a paragraph each."""
    guides = sorted((ROOT / "docs" / "guides").glob("*.md"))
    return "".join(
        json.dumps({"text": paragraph}) + "\n" for page in guides for paragraph in page.read_text("utf-8").split("\n\n")
    )


def run(words: list[str], place: Path) -> Answer:
    if not any("ORG/" in word for word in words):
        # the memory of the tests' own process counts, too
        return (quantkit_process if "--max-ram" in words else quantkit)(*words, cwd=place)
    with running_hub() as hub:
        hub.repos["ORG/NAME"] = Repo({path.name: path.read_bytes() for path in (place / "FOLDER").iterdir()})
        hub.repos["datasets/ORG/TEXTS"] = Repo({"validation.jsonl": a_text().encode(), "train.jsonl": b"{}\n"})
        env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(place / "hub")}
        return quantkit(*words, cwd=place, env=env)


@pytest.mark.parametrize("words", [words for words in commands() if words[0] == "quantkit"], ids=shlex.join)
def test_every_quantkit_command_of_the_documentation_runs(words: list[str], place: Path) -> None:
    writes = words[1] in ("awq", "convert", "gguf", "gptq", "imatrix", "measure") and "--help" not in words
    calibrates = words[1] not in ("gguf", "measure") or any(
        word.startswith(("--calibrat", "--preset", "--solver", "--target")) for word in words
    )
    types = [words[i + 1] for i, word in enumerate(words) if word == "-t"]
    if words[1] == "convert" and (
        words[2] == "FOLDER-AWQ"
        or all(name.startswith(("fp8", "nvfp4", "mxfp4", "mlx")) and not name.endswith("gptq") for name in types)
    ):
        calibrates = False
    more = (*(["--force"] if writes else []), *(FEW_SAMPLES if writes and calibrates else []))
    # the last of an option given twice counts: two short windows, and one load of each GGUF
    short = ("--gpu-layers", "0", "--ctx", "128", "--chunks", "2")
    once = short if words[1] == "measure" and "--help" not in words else ()
    answer = run([*words[1:], *more, *once], place)
    assert answer.code == 0, answer.stderr


def test_every_make_target_of_the_documentation_exists() -> None:
    targets = [words[1] for words in commands() if words[0] == "make"]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_every_command_of_the_documentation_is_one_this_file_knows() -> None:
    assert {words[0] for words in commands()} == {"quantkit", "make"}


def test_the_extras_that_the_documentation_names_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    text = "".join(page.read_text("utf-8") for page in PAGES)
    named = set(re.findall(r"\[(\w+)\]'", text)) | set(re.findall(r"extra `(\w+)`", text))
    assert named
    assert named <= set(extras)


def row(line: str) -> tuple[list[str], float]:
    """A table row as what is the same anywhere, and its logit correlation, whose last digits are the processor's."""
    cells = line.split()
    correlation = next((float(cell) for cell in cells if re.fullmatch(r"0\.\d{4}", cell)), 0.0)
    return re.sub(r"\d+\.\d s\b|0\.\d{4}", "", line).split(), correlation


@pytest.mark.parametrize("example", blocks("console", [ROOT / "README.md"]), ids=lambda text: text.split()[2])
def test_the_examples_are_what_comes_out(example: str, tmp_path: Path) -> None:
    checkpoint = smollm2_or_skip()
    command, *table = example.splitlines()
    words = shlex.split(command.removeprefix("$ "))
    assert words[0] == "quantkit"
    assert words[2] == checkpoint.name
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


def test_the_guide_names_every_built_in_template() -> None:
    guide = (ROOT / "docs" / "guides" / "gguf.md").read_text("utf-8")
    section = guide.split("## Chat templates")[1].split("## ")[0]
    assert set(BUILT_IN) | {"none"} <= set(re.findall(r"`([\w-]+)`", section))


def test_the_chinese_readme_has_the_commands_and_figures_of_the_english_one() -> None:
    chinese = (ROOT / "README.zh-CN.md").read_text("utf-8")
    assert set(map(tuple, commands([ROOT / "README.md"]))) <= set(map(tuple, commands([ROOT / "README.zh-CN.md"])))
    for block in blocks("text", [ROOT / "README.md"]) + blocks("console", [ROOT / "README.md"]):
        assert block in chinese
    links = re.compile(r"\]\((?:docs|[A-Z]+\.md)[^)]*\)")
    assert set(links.findall(README)) - {"](README.zh-CN.md)"} <= set(links.findall(chinese))
