"""`run --image`: the model answers about an image, and everything that may be missing is one sentence."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quantkit.api import ConvertOptions, convert
from quantkit.errors import QuantkitError, UsageError
from quantkit.gguf.projector_file import choose_projector, named_projectors, projectors_beside
from quantkit.llamacpp.conversation import Loading, converse
from tests.helpers.command import quantkit
from tests.helpers.mtmd import VARIABLE
from tests.vision.expected import expected, write_checkpoint
from tests.vision.headers import write_gguf

NAME = "qwen3-vl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF and the projector of a tiny model, and an image."""
    root = tmp_path_factory.mktemp("sees")
    checkpoint = write_checkpoint(NAME, expected(NAME)["layout"], root)
    convert(checkpoint, ["q8_0"], root, ConvertOptions(mmproj=("f16",), pre="smollm", logits=False))
    pixels = np.random.RandomState(0).randint(0, 256, (128, 128, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(root / f"{NAME}-GGUF" / "image.png")
    return root / f"{NAME}-GGUF"


@pytest.mark.usefixtures("libmtmd")
def test_the_model_answers_about_an_image(folder: Path) -> None:
    words = ("run", folder / f"{NAME}-Q8_0.gguf", "-p", "what is it?", "-n", "3", "--raw", "--seed", "1")
    plain = quantkit(*words, "--format", "json")
    seeing = quantkit(*words, "--image", folder / "image.png", "--format", "json")
    assert plain.code == 0 and seeing.code == 0, plain.stderr + seeing.stderr
    document = json.loads(seeing.stdout)
    assert document["images"] == [str(folder / "image.png")]
    assert document["mmproj"] == str(folder / f"mmproj-{NAME}-F16.gguf")
    # 128 x 128 pixels in squares of 32 are 16 tokens, between the two that begin and end an image
    assert document["prompt_tokens"] >= json.loads(plain.stdout)["prompt_tokens"] + 16
    assert document["tokens"] == 3


@pytest.mark.usefixtures("libmtmd")
def test_a_later_question_keeps_the_image_in_the_cache(folder: Path) -> None:
    """And its answer is that of a conversation that begins with it."""
    answers = {}
    for questions in (("what is it?", "which colour?"), ("which colour?",)):
        model = folder / f"{NAME}-Q8_0.gguf"
        with converse(model, n_ctx=256, system=None, raw=True, sampling={"temperature": 0.0}) as talk:
            talk.show([folder / "image.png"], choose_projector(model, None))
            talk.open(Loading(gpu_layers=0))
            answers[questions] = [talk.say(text, most=6, show=lambda piece: None) for text in questions]
    (_, second), (alone,) = answers.values()
    # at least the 16 tokens of the image
    assert second.prompt_tokens + 16 <= alone.prompt_tokens
    assert second.text == alone.text


@pytest.mark.usefixtures("libmtmd")
def test_a_file_that_is_no_image_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes((folder / "image.png").read_bytes()[:100])
    (tmp_path / "folder.png").mkdir()
    model = folder / f"{NAME}-Q8_0.gguf"
    words = ("run", model, "-p", "what is it?", "--image")
    sentence = "cannot read {} as an image; pass an intact JPEG, PNG, BMP or GIF file"
    answer = quantkit(*words, tmp_path / "notes.png")
    assert answer.code == 1 and answer.sentence.endswith(sentence.format("notes.png"))
    for name in ("empty.png", "cut.png"):
        with converse(model, n_ctx=256, system=None, raw=True, sampling={}) as talk:
            talk.show([tmp_path / name], choose_projector(model, None))
            talk.open(Loading(gpu_layers=0))
            with pytest.raises(QuantkitError, match=re.escape(sentence.format(name))):
                talk.say("what is it?", most=1, show=lambda piece: None)
    assert "folder.png is not a file; correct --image" in quantkit(*words, tmp_path / "folder.png").sentence
    assert "none.png was not found; correct --image" in quantkit(*words, tmp_path / "none.png").sentence


def test_a_projector_is_no_model_to_run(folder: Path) -> None:
    answer = quantkit("run", folder / f"mmproj-{NAME}-F16.gguf", "-p", "what is it?")
    assert answer.code == 1 and "is a projector, not a model; pass the text model as MODEL" in answer.sentence


@pytest.mark.usefixtures("libmtmd")
def test_a_projector_that_llama_cpp_refuses_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "mmproj.gguf"
    reader = (folder / f"mmproj-{NAME}-F16.gguf").read_bytes()
    damaged.write_bytes(reader.replace(b"qwen3vl_merger", b"qwen9vl_merger"))
    model = folder / f"{NAME}-Q8_0.gguf"
    answer = quantkit("run", model, "-p", "what is it?", "--image", folder / "image.png", "--mmproj", damaged)
    assert answer.code == 1 and "could not load the projector mmproj.gguf" in answer.sentence


def test_without_libmtmd_the_sentence_names_the_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    answer = quantkit("run", folder / f"{NAME}-Q8_0.gguf", "-p", "what?", "--image", folder / "image.png")
    assert answer.code == 1 and "built without libmtmd" in answer.sentence and "pip install" in answer.sentence


def test_files_that_do_not_belong_together_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    model = shutil.copy(folder / f"{NAME}-Q8_0.gguf", tmp_path / "model.gguf")
    words = ("run", model, "-p", "what is it?", "--image", folder / "image.png")
    assert "no projector (mmproj-*.gguf) lies beside model.gguf" in quantkit(*words).sentence
    assert "--mmproj has no effect without --image" in quantkit(*words[:4], "--mmproj", model).sentence
    assert "is not a projector but a model" in quantkit(*words, "--mmproj", model).sentence
    keys = {"general__type": "mmproj", "clip__vision__projection_dim": 96}
    other = write_gguf(tmp_path / "mmproj-other-F16.gguf", "clip", **keys)
    answer = quantkit(*words, "--mmproj", other)
    assert answer.code == 2 and "it gives vectors of 96 values, but model.gguf takes 192" in answer.sentence
    # the width of the text model, without the vectors of DeepStack
    keys["clip__vision__projection_dim"] = 64
    answer = quantkit(*words, "--mmproj", write_gguf(tmp_path / "mmproj-same-F16.gguf", "clip", **keys))
    assert answer.code == 2 and "it gives vectors of 64 values, but model.gguf takes 192" in answer.sentence


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["mmproj-M-BF16.gguf", "mmproj-M-F16.gguf", "mmproj-M-Q8_0.gguf"], "mmproj-M-F16.gguf"),
        (["mmproj-M-Q8_0.gguf", "mmproj-Other-F16.gguf"], "mmproj-M-Q8_0.gguf"),
        (["mmproj-F16.gguf", "mmproj-BF16.gguf"], "mmproj-F16.gguf"),
        (["mmproj-model-f16.gguf"], "mmproj-model-f16.gguf"),
        (["M-mmproj.gguf"], "M-mmproj.gguf"),
        (["mmproj-A-F16.gguf", "mmproj-B-F16.gguf"], None),
        ([], None),
    ],
)
def test_the_projector_beside_a_model_is_found_by_its_name(
    files: list[str], chosen: str | None, tmp_path: Path
) -> None:
    for name in files:
        write_gguf(tmp_path / name, "clip", general__type="mmproj")
    model = write_gguf(tmp_path / "M-Q4_K_M.gguf", "llama", llama__embedding_length=64)
    assert [path.name for path in projectors_beside(model)][:1] == ([chosen] if chosen else [])
    # ollama, plan and card take no other's
    by_name = chosen if chosen != "mmproj-model-f16.gguf" else None
    assert [path.name for path in named_projectors(model)][:1] == ([by_name] if by_name else [])
    if chosen is None:
        with pytest.raises(UsageError, match=r"beside M-Q4_K_M\.gguf"):
            choose_projector(model, None)
    else:
        assert choose_projector(model, None).name == chosen
