"""The pages themselves: links lead somewhere, generated pages are current, the README is one page."""

import re
from pathlib import Path

import pytest

import quantkit
from quantkit.cli import COMMANDS, load_command
from quantkit.cli.errors import EXIT_CODES
from quantkit.system.python import tomllib
from tools.reference import ENVIRONMENT, FOLDER, PAGES

ROOT = Path(__file__).resolve().parents[2]
MARKDOWN = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the hub and the forges make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    for target in LINK.findall(text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_current(name: str) -> None:
    assert (FOLDER / name).read_text("utf-8") == PAGES[name](), "run `make docs`"


def test_every_page_of_docs_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "index.md" or f"({name})" in index, name


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_readme_has_at_most_150_lines_and_lists_every_command(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert len(text.splitlines()) <= 150
    for command in COMMANDS:
        assert f"[`{command}`](" in text, command


def test_the_table_of_commands_says_what_each_commands_help_says() -> None:
    """--help of quantkit loads no command, so the first lines of their docstrings are stated twice."""
    first_lines = {name: (load_command(name).help or "").splitlines()[0] for name in COMMANDS}
    assert first_lines == COMMANDS


def test_the_variables_named_in_the_reference_are_read_by_the_code() -> None:
    code = "".join(path.read_text("utf-8") for path in (ROOT / "quantkit").rglob("*.py"))
    for name in (name for names in ENVIRONMENT for name in names.split(", ")):
        assert name.startswith("HF_") or f'"{name}"' in code, name


def test_every_variable_of_quantkit_and_every_variable_of_a_page_is_in_the_reference() -> None:
    listed = {name for names in ENVIRONMENT for name in names.split(", ")}
    code = "".join(path.read_text("utf-8") for path in (ROOT / "quantkit").rglob("*.py"))
    pages = "".join(page.read_text("utf-8") for page in MARKDOWN if page.name != "CHANGELOG.md")
    assert set(re.findall(r"\"(QUANTKIT_\w+)\"", code)) <= listed
    assert set(re.findall(r"`((?:QUANTKIT|HF|OLLAMA|XDG|GGML)_[A-Z_]+)", pages)) <= listed


def test_the_exit_codes_of_a_page_are_those_of_the_code() -> None:
    codes = {0, *EXIT_CODES.values()}
    for page in MARKDOWN:
        text = page.read_text("utf-8")
        named = re.findall(r"(?:with code|exits|exit code) (\d+)", text)
        assert {int(code) for code in named} <= codes, page.name


def test_the_version_is_stated_once() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "version" not in settings["project"]
    assert settings["project"]["dynamic"] == ["version"]
    stated = (ROOT / settings["tool"]["hatch"]["version"]["path"]).read_text("utf-8")
    assert f'__version__ = "{quantkit.__version__}"' in stated.splitlines()


def test_the_changelog_starts_with_this_version() -> None:
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert first and first[1].rstrip(",") == quantkit.__version__
