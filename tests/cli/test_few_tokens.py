"""The warnings of a calibration with few tokens for the width of an input, and of samples too long for the model."""

import json
from pathlib import Path

import pytest

from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama

BEST = ("--seq-len", "32", "--quality", "best", "--dry-run")


@pytest.mark.parametrize(("samples", "is_warned"), [(15, True), (16, False)])
@pytest.mark.parametrize("words", [("gguf", "-t", "q4_0"), ("awq", "--group-size", "32")])
def test_fewer_than_two_tokens_a_channel_have_a_warning(
    words: tuple[str, ...], samples: int, is_warned: bool, tmp_path: Path
) -> None:
    source = tiny_llama(tmp_path / "model", intermediate=192)
    answer = quantkit(words[0], source, *words[1:], "--samples", str(samples), *BEST, "-o", tmp_path)
    assert answer.code == 0, answer.stderr
    sentence = "480 calibration tokens are few for --quality best, whose widest input has 256 channels"
    assert (sentence in answer.stderr) == is_warned
    assert ("use --samples 16 or more" in answer.stderr) == is_warned


@pytest.mark.parametrize(
    ("width", "samples", "sees"),
    [
        # two of four experts for each token: 512 channels need 1024 tokens of an expert, 2048 of the text
        (512, 63, "2016 calibration tokens are few for --quality best: an expert sees about 1008"),
        (512, 64, None),
        # an expert takes up to 256 tokens that were not sent to it, and no more are needed for 128 channels
        (128, 8, None),
        (160, 19, "608 calibration tokens are few for --quality best: an expert sees about 304"),
    ],
)
def test_an_expert_sees_its_share_of_the_tokens(width: int, samples: int, sees: str | None, tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "model", variant="mixtral", hidden=128, intermediate=width)
    answer = quantkit("gguf", source, "-t", "q4_0", "--samples", str(samples), *BEST, "-o", tmp_path)
    assert answer.code == 0, answer.stderr
    assert ("are few for --quality best" in answer.stderr) == (sees is not None)
    if sees is not None:
        assert f"{sees} of them, and its widest input has {width} channels;" in answer.stderr
        assert f"use --samples {samples + 1} or more" in answer.stderr


@pytest.mark.parametrize("is_gguf", [False, True])
@pytest.mark.parametrize(
    ("context", "scaling", "is_warned"), [(32, None, True), (33, None, False), (32, "linear", False)]
)
def test_samples_longer_than_the_trained_context_have_a_warning(
    context: int, scaling: str | None, is_warned: bool, is_gguf: bool, tmp_path: Path
) -> None:
    source = with_context(tiny_llama(tmp_path / "model"), context, scaling)
    if is_gguf:
        answer = quantkit("gguf", source, "-t", "f16", "-o", tmp_path)
        assert answer.code == 0, answer.stderr
        (source,) = tmp_path.rglob("*.gguf")
    words = ("--samples", "4", "--seq-len", "33", "--calibrate", "--dry-run", "-o", tmp_path / "out")
    answer = quantkit("gguf", source, "-t", "q4_0", *words)
    assert answer.code == 0, answer.stderr
    sentence = f"{source.stem} was trained for 32 tokens, and samples have 33; use --seq-len 32"
    assert (sentence in " ".join(answer.stderr.split())) == is_warned, answer.stderr


@pytest.mark.parametrize(("n_ctx", "is_warned"), [(64, True), (32, False)])
def test_windows_longer_than_the_trained_context_have_a_warning(n_ctx: int, is_warned: bool, tmp_path: Path) -> None:
    source = with_context(tiny_llama(tmp_path / "model"), 32, None)
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    answer = quantkit(
        "measure", source, "--text", text, "--ctx", str(n_ctx), "--chunks", "1", "-o", tmp_path / "report"
    )
    assert answer.code == 0, answer.stderr
    sentence = "model was trained for 32 tokens, so its perplexity rises in windows of 64; use --ctx 32"
    assert (sentence in " ".join(answer.stderr.split())) == is_warned, answer.stderr


def with_context(folder: Path, context: int, scaling: str | None) -> Path:
    """The checkpoint with another trained context, and a scaling of its positions by two."""
    config = json.loads((folder / "config.json").read_text())
    rope = None if scaling is None else {"rope_type": scaling, "factor": 2.0}
    config |= {"max_position_embeddings": context, "rope_scaling": rope}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
