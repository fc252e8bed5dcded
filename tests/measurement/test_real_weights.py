"""Real weights through the command line: two engines on one model, a model against itself, and one with a fault."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest

from demo.smollm2 import NAME
from tests.helpers.command import Answer, quantkit
from tests.helpers.real import smollm2_or_skip, wikitext2_or_skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as f32.gguf, wiki.test.raw, a twin of the file and one with two layers swapped."""
    folder = tmp_path_factory.mktemp("real")
    answer = quantkit("gguf", smollm2_or_skip(), "-t", "f32", "-o", folder, "--no-logits")
    assert answer.code == 0, answer.stderr
    (folder / f"{NAME}-GGUF" / f"{NAME}-F32.gguf").rename(folder / "f32.gguf")
    (folder / "wiki.test.raw").write_text(wikitext2_or_skip(), encoding="utf-8")
    os.link(folder / "f32.gguf", folder / "twin.gguf")
    shutil.copy(folder / "f32.gguf", folder / "swapped.gguf")
    _swap_layers(folder / "swapped.gguf")
    return folder


def _swap_layers(path: Path) -> None:
    """Layers 3 and 4 change places: each tensor's name says the other's number."""
    with path.open("r+b") as file:
        header = file.read(gguf.GGUFReader(path).data_offset)
        assert header.count(b"blk.3.") == header.count(b"blk.4.") == 9
        file.seek(0)
        file.write(header.replace(b"blk.3.", b"blk.?.").replace(b"blk.4.", b"blk.3.").replace(b"blk.?.", b"blk.4."))


def _measure(folder: Path, out: str, *words: str | Path) -> tuple[Answer, dict[str, Any]]:
    text = folder / "wiki.test.raw"
    options = ["--text", text, "--gpu-layers", "none", "--threads", "2", "-o", folder / out]
    answer = quantkit("measure", *words, *options)
    report: dict[str, Any] = json.loads((folder / out / "report.json").read_text())
    return answer, report


def test_the_streamed_forward_and_llama_cpp_agree_on_the_same_weights(folder: Path) -> None:
    answer, report = _measure(
        folder, "engines", smollm2_or_skip(), folder / "f32.gguf", "--chunks", "1", "--ctx", "256"
    )
    assert answer.code == 0, answer.stderr
    own, other = report["models"]
    assert (own["kind"], other["kind"]) == ("hf", "gguf")
    quality = other["quality"][0]
    assert quality["perplexity_ratio"]["value"] == pytest.approx(1, abs=0.001)
    assert quality["top1"]["value"] > 0.995
    assert 0 < quality["kl"]["mean"] < 1e-4


def test_a_model_is_itself_and_a_swapped_layer_is_flagged_with_the_report_still_written(folder: Path) -> None:
    names = (folder / f"{name}.gguf" for name in ("f32", "twin", "swapped"))
    answer, report = _measure(folder, "faults", *names, "--chunks", "1", "--max-delta", "5%")
    twin, swapped = (model["quality"][0] for model in report["models"][1:])
    assert twin["perplexity"] == report["models"][0]["quality"][0]["perplexity"]
    assert twin["perplexity_difference"] == {"value": 0, "error": 0}
    assert twin["perplexity_ratio"] == {"value": 1, "error": 0}
    assert (twin["kl"]["mean"], twin["kl"]["max"]) == (0, 0)
    assert twin["top1"] == twin["top5"] == {"value": 1, "error": 0}

    increase = swapped["perplexity_ratio"]["value"] - 1
    assert increase > 0.05
    assert answer.code == 3, answer.stderr
    sentence = f"on wiki.test.raw its perplexity is above the reference's by {increase:.1%} over 5.0%"
    assert "swapped" in answer.sentence and sentence in answer.sentence
    assert "twin" not in answer.sentence
    assert (folder / "faults" / "report.html").exists() and not (folder / "faults" / "measure.partial").exists()
