"""The warning of `--quality best` where the calibration has few tokens for the width of an input."""

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
