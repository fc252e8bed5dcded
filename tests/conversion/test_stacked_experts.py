"""Experts that stay stacked in one tensor, rounded for the inputs of rounded layers as separate ones are."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from quantkit import ConvertOptions, convert
from quantkit.families.base import native
from quantkit.forward.description import Architecture
from quantkit.outputs.calibration import CalibrationRequest
from tests.families.expected import write_checkpoint

BEST = ConvertOptions(
    calibrate=True,
    calibration=CalibrationRequest(samples=12, seq_len=64),
    threads=2,
    solver="feedback",
    sweeps=2,
    asymmetric=True,
    logits=False,
)


def best(source: Path, out: Path) -> dict[str, np.ndarray]:
    """The tensors of a q4_0 made with --quality best."""
    convert(source, ["q4_0"], out, BEST)
    (path,) = out.rglob("*.gguf")
    return {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}


def test_stacked_experts_get_the_values_of_separate_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_checkpoint("qwen2moe-fused-no-biases", tmp_path / "model")
    separate = best(source, tmp_path / "separate")
    find = native.find_architecture

    def of_stacks(config: Mapping[str, Any]) -> Architecture:
        found = find(config)
        assert found.experts is not None and found.experts.stacked is not None
        return replace(found, experts=replace(found.experts, expert=None))

    monkeypatch.setattr(native, "find_architecture", of_stacks)
    stacked = best(source, tmp_path / "stacked")
    assert stacked.keys() == separate.keys()
    different = {name: float((stacked[name] != separate[name]).mean()) for name in separate}
    assert {name: part for name, part in different.items() if part} == {}
