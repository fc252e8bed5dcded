"""`quantkit card` as a publisher meets it who converted by hand."""

import json
from pathlib import Path

import pytest
from huggingface_hub.repocard import metadata_load

from tests.helpers.command import quantkit
from tests.publish.gguf_files import write_gguf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "Small-GGUF" / "Small-Q4_0.gguf", type="q4_0", license="mit")
    write_gguf(tmp_path / "Small-GGUF" / "Small-Q8_0.gguf", type="q8_0", license="mit")
    return tmp_path / "Small-GGUF"


def test_the_options_are_in_the_card_and_what_lacks_comes_from_the_files(folder: Path, tmp_path: Path) -> None:
    answer = quantkit(
        *("card", folder, "--base-model", "org/Small", "--repo", "me/Small-GGUF", "--ollama", "me/small"),
        *("--language", "zh", "--language", "en"),
        cwd=tmp_path,
    )
    assert answer.code == 0, answer.stderr
    assert answer.stdout.strip() == str(folder / "README.md") and "hf upload me/Small-GGUF" in answer.stderr
    fields = metadata_load(folder / "README.md")
    assert (fields["base_model"], fields["license"], fields["language"]) == ("org/Small", "mit", ["zh", "en"])
    text = (folder / "README.md").read_text()
    assert text.count("# Small GGUF\n") == 1 and "ollama run me/small\n" in text


def test_a_report_brings_its_figures_and_plots(folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    (report / "plots").mkdir(parents=True)
    (report / "plots" / "memory.png").write_bytes(b"\x89PNG")
    quality = [{"text": "wiki", "perplexity": {"value": 12.5, "error": 0.25}}]
    model = {"label": "q4_0", "kind": "gguf", "path": "Small-Q4_0.gguf", "role": "candidate", "quality": quality}
    (report / "report.json").write_text(json.dumps({"texts": [{"name": "wiki"}], "models": [model]}))
    for given in (report, report / "report.json"):
        answer = quantkit(
            "card", folder, "--report", given, "-o", tmp_path / "card.md", "--format", "json", cwd=tmp_path
        )
        assert json.loads(answer.stdout)["card"] == str(tmp_path / "card.md")
        text = (tmp_path / "card.md").read_text()
        assert "12.50 ± 0.25" in text and "](plots/memory.png)" in text
    assert (tmp_path / "plots" / "memory.png").exists() and not (folder / "README.md").exists()


def test_a_report_of_another_model_brings_nothing(folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    (report / "plots").mkdir(parents=True)
    (report / "plots" / "memory.png").write_bytes(b"\x89PNG")
    quality = [{"text": "wiki", "perplexity": {"value": 12.5, "error": 0.25}}]
    model = {"label": "q4_0", "kind": "gguf", "path": "Other-Q4_0.gguf", "role": "candidate", "quality": quality}
    (report / "report.json").write_text(json.dumps({"texts": [{"name": "wiki"}], "models": [model]}))
    assert quantkit("card", folder, "--report", report, cwd=tmp_path).code == 0
    text = (folder / "README.md").read_text()
    assert "12.50" not in text and "plots/" not in text and not (folder / "plots").exists()


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("nothing",), 2, "folder nothing not found"),
        (("empty",), 2, "is not a folder of GGUF files or of quantized weights"),
        (("Small-GGUF", "--repo", "me"), 2, "--repo 'me' is not a hub id; write ORG/NAME"),
        (("Small-GGUF", "--base-model", "a/b/c"), 2, "--base-model 'a/b/c' is not a hub id"),
        (("Small-GGUF", "--language", "Chinese"), 2, "'Chinese' is not an ISO 639 code"),
        (("Small-GGUF", "--ollama", "Me/Small"), 2, "capital letters"),
        (("Small-GGUF", "--report", "empty"), 2, "cannot read the report empty/report.json"),
        (("Small-GGUF", "--report", "words.json"), 1, "words.json is not valid JSON"),
        (("Small-GGUF", "--report", "list.json"), 1, "list.json is not a report"),
        (("Small-GGUF", "-o", "list.json/x/card.md"), 2, "list.json is a file, not a folder"),
    ],
)
def test_bad_input_is_one_sentence(
    folder: Path, tmp_path: Path, words: tuple[str, ...], code: int, sentence: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.json").write_text("words")
    (tmp_path / "list.json").write_text("[]")
    answer = quantkit("card", *words, cwd=tmp_path)
    assert answer.code == code and sentence in answer.sentence, answer.stderr
    assert not (folder / "README.md").exists()
