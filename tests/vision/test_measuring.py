"""`measure` of models that see: agreement of answers about pictures, against greedy answers of `run` and formulas."""

import json
import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from PIL import Image

from quantkit.api import ConvertOptions, convert
from quantkit.llamacpp.conversation import Loading, converse
from quantkit.measurement import answers
from quantkit.measurement.answers import MOST, Followed, figures
from quantkit.measurement.pictures import PICTURES, SIDE, Picture, write_png
from tests.helpers.command import Answer, quantkit
from tests.helpers.mtmd import VARIABLE
from tests.vision.expected import expected, write_checkpoint

NAME = "qwen3-vl"
FEW = (PICTURES[0], PICTURES[3])
"""Each picture costs each model 0.2 s of CPU."""
TEXT = "the quick brown fox jumps over the lazy dog " * 20


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sees")
    checkpoint = write_checkpoint(NAME, expected(NAME)["layout"], root)
    convert(checkpoint, ["f16", "q4_0"], root, ConvertOptions(mmproj=("f16",), pre="smollm", logits=False))
    (root / "text.txt").write_text(TEXT)
    return root


@pytest.fixture
def folder(converted: Path, tmp_path: Path) -> Path:
    shutil.copy(converted / "text.txt", tmp_path)
    return shutil.copytree(converted / f"{NAME}-GGUF", tmp_path / f"{NAME}-GGUF")


@pytest.fixture
def pictures(libmtmd: None, monkeypatch: pytest.MonkeyPatch) -> tuple[Picture, ...]:
    """The pictures of the commands: few, unless they run in processes of their own."""
    if VARIABLE in os.environ:
        return PICTURES
    monkeypatch.setattr(answers, "PICTURES", FEW)
    return FEW


def measured(folder: Path, *words: object) -> Answer:
    text = folder.parent / "text.txt"
    fixed = ("--text", text, "--ctx", "32", "--chunks", "1", "--gpu-layers", "none", "--format", "json")
    return quantkit("measure", *words, *fixed, "-o", folder.parent / "report")


def greedy(model: Path, projector: Path, images: list[Path], pictures: tuple[Picture, ...]) -> list[str]:
    """The answers of `run` at temperature 0, each the first of a conversation."""
    texts = []
    with converse(model, n_ctx=None, system=None, raw=False, sampling={"temperature": 0.0}) as talk:
        talk.show(images[:1], projector)
        talk.open(Loading(n_threads=2))
        for image, picture in zip(images, pictures, strict=True):
            talk.images, talk.messages = (image,), []
            texts.append(talk.say(picture.question, most=MOST, show=lambda piece: None).text)
    return texts


def test_answers_agree_as_often_as_the_greedy_answers_of_run(folder: Path, pictures: tuple[Picture, ...]) -> None:
    files = [folder / f"{NAME}-{kind}.gguf" for kind in ("F16", "Q4_0")]
    answer = measured(folder, *files, files[0])
    assert answer.code == 0, answer.stderr
    reference, candidate, same = (model["pictures"] for model in json.loads(answer.stdout)["models"])
    projector = folder / f"mmproj-{NAME}-F16.gguf"
    images = [folder / f"{number}.png" for number in range(len(pictures))]
    for image, picture in zip(images, pictures, strict=True):
        write_png(image, picture.draw())
    texts = [greedy(model, projector, images, pictures) for model in files]
    assert candidate["same_answers"] == sum(a == b for a, b in zip(*texts, strict=True))
    assert len(set(texts[0])) > 1, "the answers depend on the question or the picture"
    assert 0 < candidate["top1"] < 1 and candidate["kl"] > 0
    assert reference["tokens"] == candidate["tokens"] <= len(pictures) * MOST
    assert "top1" not in reference and reference["projector"] == projector.name
    assert reference["projector_bytes"] == projector.stat().st_size
    assert (same["same_answers"], same["top1"], same["kl"]) == (len(pictures), 1.0, 0.0)


def test_another_projector_changes_the_answers_and_not_the_text(folder: Path, pictures: tuple[Picture, ...]) -> None:
    """The file of the candidate is the reference's; its projector has other weights."""
    other = folder / "other-F16.gguf"
    shutil.copy(folder / f"{NAME}-F16.gguf", other)
    changed = shutil.copy(folder / f"mmproj-{NAME}-F16.gguf", folder / "mmproj-other-F16.gguf")
    for tensor in gguf.GGUFReader(changed, "r+").tensors:
        if tensor.name.startswith("mm."):
            tensor.data[:] = -tensor.data
    answer = measured(folder, folder / f"{NAME}-F16.gguf", other)
    assert answer.code == 0, answer.stderr
    _, candidate = json.loads(answer.stdout)["models"]
    assert candidate["quality"][0]["perplexity_difference"]["value"] == 0
    assert candidate["pictures"]["projector"] == "mmproj-other-F16.gguf"
    assert candidate["pictures"]["kl"] > 0
    report = (folder.parent / "report" / "report.md").read_text()
    assert "**Answers about pictures**" in report and f"of {len(pictures)}" in report
    assert "Answers about pictures" in (folder.parent / "report" / "report.html").read_text()


@pytest.mark.full
@pytest.mark.usefixtures("libmtmd")
def test_a_folder_of_files_and_a_table_in_the_terminal(folder: Path) -> None:
    """The projector in the folder is not a model to measure."""
    words = ("--text", folder.parent / "text.txt", "--ctx", "32", "--chunks", "1", "--gpu-layers", "none")
    answer = quantkit("measure", folder, *words, "-o", folder.parent / "report")
    assert answer.code == 0, answer.stderr
    assert "Answers about pictures" in answer.stdout and "same answers" in answer.stdout
    answer = measured(folder, folder, "--mmproj", "none")
    assert answer.code == 0 and not any("pictures" in model for model in json.loads(answer.stdout)["models"])


def test_figures_follow_from_their_definitions() -> None:
    rng = np.random.default_rng(0)
    one, two = (rng.standard_normal((3, 5)).astype(np.float32) for _ in range(2))
    tokens = [int(row.argmax()) for row in one]
    kl = 0.0
    for a, b in zip(one.astype(float), two.astype(float), strict=True):
        p, q = np.exp(a) / np.exp(a).sum(), np.exp(b) / np.exp(b).sum()
        kl += float((p * np.log(p / q)).sum()) / 3
    agree = [int(row.argmax()) == token for row, token in zip(two, tokens, strict=True)]
    result = figures([Followed(tokens, one)], [Followed(tokens, two)])
    assert result["kl"] == pytest.approx(kl, abs=1e-6) and result["top1"] == pytest.approx(np.mean(agree), abs=1e-6)
    assert result["same_answers"] == all(agree)


def test_pictures_are_png_files_of_different_images(tmp_path: Path) -> None:
    read = []
    for number, picture in enumerate(PICTURES):
        write_png(tmp_path / f"{number}.png", picture.draw())
        with Image.open(tmp_path / f"{number}.png") as image:
            assert image.size == (SIDE, SIDE) and image.mode == "RGB"
            read.append(np.asarray(image))
        assert (read[-1] == picture.draw()).all()
    assert len({pixels.tobytes() for pixels in read}) == len(PICTURES)
    red, blue = read[0][112, 112], read[1][112, 60]
    assert red.argmax() == 0 and blue.argmax() == 2


def test_what_cannot_be_compared_is_one_sentence(folder: Path, converted: Path, tmp_path: Path) -> None:
    model = folder / f"{NAME}-F16.gguf"
    answer = measured(folder, model, "--mmproj", model)
    assert answer.code == 2 and "is not a projector but a model" in answer.sentence
    answer = measured(folder, model, "--mmproj", folder / "none.gguf")
    assert answer.code == 1 and "none.gguf" in answer.sentence
    (folder / "noise.gguf").write_bytes(b"GGUF" + bytes(4))
    answer = measured(folder, model, "--mmproj", folder / "noise.gguf")
    assert answer.code == 1 and "noise.gguf" in answer.sentence
