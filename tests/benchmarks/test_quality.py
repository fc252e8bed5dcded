"""The comparison of files by type: which file is which, the ratios, the table, and what a later run makes anew."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality import Bench, figures, kind_of, suffix, table
from benchmarks.quality_files import (
    FEEDBACK,
    IMATRIX,
    SIZED,
    Files,
    Options,
    calibration_texts,
    sample_request,
    text_words,
)
from demo.inputs import InputsUnavailable

TEXT = "wiki.test.raw"


def entry(name: str, kl: float, ratio: float) -> dict[str, Any]:
    quality = {
        "text": TEXT,
        "kl": {"mean": kl, "error": kl / 50, "median": 0.0},
        "perplexity_ratio": {"value": ratio, "error": 0.004},
        "top1": {"value": 0.8, "error": 0.01},
    }
    return {"path": name, "bytes": 91_700_000, "quality": [quality]}


def compared() -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    names = {"quantkit-q4_0.gguf": (0.1, 1.08), "imatrix-q4_0.gguf": (0.2, 1.10), "sized-q4_0.gguf": (0.05, 0.99)}
    report = {"models": [{"path": "source", "bytes": 5, "quality": []}, *(entry(n, *v) for n, v in names.items())]}
    made = {maker: [Path(name)] for maker, name in zip((FEEDBACK, IMATRIX, SIZED), names, strict=True)}
    return figures(report, made)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("quantkit-q4_k_m", "q4_k_m"), ("imatrix-iq4_xs", "iq4_xs"), ("sized-q2_k", "q2_k"), ("autoround-0-q4_0", "q4_0")],
)
def test_a_file_is_compared_as_the_type_in_its_name(name: str, kind: str) -> None:
    assert kind_of(Path(f"{name}.gguf")) == kind


def test_a_row_of_the_table_has_both_files_and_the_ratio_of_their_divergences() -> None:
    rows = table(compared(), TEXT).splitlines()[2:]
    theirs, ours = (
        "KL 0.2000, same top 80.0%, perplexity +10.0 ± 0.4 %",
        "KL 0.1000, same top 80.0%, perplexity +8.0 ± 0.4 %",
    )
    assert rows[0] == f"| q4_0 | 91.7 MB | {theirs} | {ours} | 0.50 |"
    assert rows[1].startswith("| size of q4_0 | 91.7 MB |") and rows[1].endswith("perplexity -1.0 ± 0.4 % | 0.25 |")


def test_each_ratio_is_held_against_its_bound() -> None:
    bench = Bench()
    bench.compare(compared(), [TEXT])
    assert [(line.model, round(line.value, 9), line.at_most) for line in bench.lines] == [
        ("q4_0", 0.5, 0.60),
        ("q4_0", 0.25, 0.55),
    ]


def test_files_of_other_options_of_quantkit_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "quality-best-reorder-neurons").mkdir()
    own, theirs = tmp_path / "quality-best-reorder-neurons" / "quantkit-q6_k.gguf", tmp_path / "imatrix-q6_k.gguf"
    for path in (own, theirs, tmp_path / "quantkit-q6_k.gguf"):
        path.touch()
    words = ["--quality", "best", "--reorder-neurons"]
    made = Files(tmp_path, Options(["q6_k"], [], 4, 512, [], 1, False, words, None, 0), tmp_path).make()
    assert made == {FEEDBACK: [own], IMATRIX: [theirs]}


def test_files_that_exist_are_not_made_again(tmp_path: Path) -> None:
    """No model is at the path: anything that had to be made would fail."""
    names = [f"{maker}-{kind}.gguf" for maker in ("quantkit", "imatrix", "plain") for kind in ("q4_0", "q2_k")]
    for name in [*names, "sized-q2_k.gguf"]:
        (tmp_path / name).touch()
    options = Options(["q4_0", "q2_k"], ["q2_k"], 4, 512, [], 1, True, ["--solver", "feedback"], None, 0)
    made = Files(tmp_path / "no-model", options, tmp_path).make()
    assert {path.name for paths in made.values() for path in paths} == {path.name for path in tmp_path.iterdir()}
    (tmp_path / "quantkit-q2_k.gguf").unlink()
    with pytest.raises(Exception, match="quantkit"):
        Files(tmp_path / "no-model", options, tmp_path).make()


@pytest.mark.parametrize(
    ("calibration", "length", "model", "expected"),
    [
        (None, None, "smollm2", ""),
        (["default"], 512, "smollm2", ""),
        (["default", "wikitext-2"], None, "smollm2", "-default-wikitext-2"),
        (["wikitext-2", "default"], 1024, "smollm2", "-wikitext-2-default-length-1024"),
        (["org/name:train"], None, "smollm2", "-org-name-train"),
        (None, 256, "stories", ""),
        (["default"], 512, "stories", "-default-length-512"),
    ],
)
def test_the_folder_of_files_names_calibration_texts_and_a_length_that_are_not_the_usual_ones(
    calibration: list[str] | None, length: int | None, model: str, expected: str
) -> None:
    assert suffix(Namespace(calibration=calibration, seq_len=length), model) == expected


def test_a_text_of_another_content_has_another_folder(tmp_path: Path) -> None:
    text = tmp_path / "my text.txt"
    names = []
    for content in ("one", "two", "one"):
        text.write_text(content)
        names.append(suffix(Namespace(calibration=[str(text)], seq_len=None), "smollm2"))
    assert names[0] == names[2] != names[1]
    assert names[0] == "-my-text-7692c3ad"  # the start of the SHA-256 of "one"


def test_a_named_text_is_given_to_convert_as_a_file() -> None:
    try:
        default, validation = calibration_texts(["default", "wikitext-2"])
    except InputsUnavailable as error:
        pytest.skip(str(error))
    assert default == "default"
    assert Path(validation).read_text("utf-8").startswith(" \n = Homarus gammarus = \n")


def test_texts_are_taken_as_they_are_and_quantkits_own_with_the_chat_template() -> None:
    assert text_words(["a.txt", "b.txt"]) == ["--calibration", "a.txt", "--calibration", "b.txt", "--raw"]
    assert text_words(["default", "a.txt"]) == ["--calibration", "default", "--calibration", "a.txt"]
    assert text_words([]) == []
    chats = [sample_request(texts, 4, 8).chat for texts in ([], ["default", "a.txt"], ["a.txt"])]
    assert chats == [None, None, False]
