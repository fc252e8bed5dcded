import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import MissingExtraError, OutputError
from quantkit.report.markdown import markdown
from quantkit.report.write import write_report
from tests.report.sample import sample


def small() -> dict[str, Any]:
    """A model and its reference, one text, one load of each, no errors of weights."""
    report = sample()
    del report["texts"][1:], report["models"][2:]
    for model in report["models"]:
        del model["quality"][1:], model["memory"][1:]
        model.pop("tensor_errors", None)
    return report


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    folder = tmp_path_factory.mktemp("report")
    return folder, write_report(sample(), folder)


def test_all_files_are_written_and_nothing_else(written: tuple[Path, list[Path]]) -> None:
    folder, files = written
    assert sorted(files) == sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix() for path in files}
    assert {"report.json", "report.md", "report.html", "plots/perplexity-size.png", "plots/memory-2.svg"} <= names


def test_they_say_the_same(written: tuple[Path, list[Path]]) -> None:
    folder, _ = written
    document = json.loads((folder / "report.json").read_text("utf-8"))
    assert document == sample()
    assert (folder / "report.md").read_text("utf-8") == markdown(document)
    page = (folder / "report.html").read_text("utf-8")
    assert page.count("<figure ") == len(list((folder / "plots").glob("*.png"))) == 13


@pytest.mark.parametrize("report", [small, pytest.param(sample, marks=pytest.mark.full)])
def test_writing_again_gives_the_same_bytes(report: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    files = write_report(report(), first)
    write_report(json.loads((first / "report.json").read_text("utf-8")), again)
    for path in files:
        assert (again / path.relative_to(first)).read_bytes() == path.read_bytes(), path.name


def test_without_matplotlib_the_figures_are_kept_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError):
        write_report(sample(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]


def test_plots_and_a_page_of_an_earlier_report_do_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(small(), tmp_path)
    (tmp_path / "plots" / "mine.png").write_text("")
    fewer = {**small(), "models": small()["models"][:1]}
    files = write_report(fewer, tmp_path)
    assert set((tmp_path / "plots").iterdir()) - set(files) == {tmp_path / "plots" / "mine.png"}
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError):
        write_report(fewer, tmp_path)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["plots/mine.png", "report.json", "report.md"]


def test_half_a_character_in_a_name_is_written_too(tmp_path: Path) -> None:
    document = {"models": [{"name": "a\udcff", "role": "reference"}]}
    write_report(document, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text("utf-8")) == document


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot create"):
        write_report(small(), tmp_path / "file")
