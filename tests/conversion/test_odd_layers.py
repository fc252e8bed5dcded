"""Calibration of models with layers that lack parts or all linears, and of a tokenizer that no library reads."""

from pathlib import Path

import pytest

from quantkit.packed.reader import open_quantized
from tests.families.expected import write_checkpoint
from tests.helpers.command import quantkit


@pytest.mark.parametrize("name", ["nemotron-nas", "plamo3", "openelm"])
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_every_linear_is_calibrated_and_the_folder_passes_its_checks(name: str, method: str, tmp_path: Path) -> None:
    source, text = write_checkpoint(name, tmp_path / name), tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 100)
    calibration = ("--calibration", text, "--samples", "2", "--seq-len", "48")
    result = quantkit(method, source, "--group-size", "32", *calibration, "-o", tmp_path / "out")
    assert result.code == 0, result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("--quality", "best"),
        ("--algorithm", "awq", "--quality", "best"),
        ("--algorithm", "awq", "--rounding", "nearest"),
    ],
    ids=" ".join,
)
def test_the_linear_back_from_a_latent_of_experts_is_rounded_when_they_have_run(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    source, text = write_checkpoint("kimi-k3", tmp_path / "kimi-k3"), tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 100)
    calibration = ("--calibration", text, "--samples", "4", "--seq-len", "24")
    result = quantkit("convert", source, "-t", "w4a16", "--group-size", "-1", *words, *calibration, "-o", tmp_path)
    assert result.code == 0, result.stderr
    (folder,) = tmp_path.glob("*-W4A16")
    with open_quantized(folder) as opened:
        assert sum(name.endswith(".routed_expert_up_proj") for name in opened.linears) == 4
