"""A checkpoint that another tool quantized, converted to an F32 GGUF: llama.cpp's logits are those of its own weights.

The tool quantizes a small model, and dequantizes the result itself. transformers computes the logits of these weights
in float32, in the tool's environment.
"""

from pathlib import Path

import numpy as np
import pytest

from quantkit.llamacpp.evaluation import logits
from tests.helpers.command import quantkit
from tests.peers.environments import run_inside
from tests.peers.models import PROMPT, small_model

pytestmark = [pytest.mark.peers, pytest.mark.timeout(3600)]

BOUND = 1e-3
"""Of the logits' standard deviation, root mean square of a token."""
QUANTIZATION = 0.03
"""Quantization moves the logits at least by this, except in 8 bit."""
TOOLS = {
    "compressed": ("w4a16", "w4a16-asymmetric", "w8a16", "int8", "fp8", "nvfp4"),
    "bitsandbytes": ("nf4", "nf4-nested", "fp4", "int8"),
    "gptqmodel": ("4bit", "4bit-act-order", "4bit-asymmetric", "8bit"),
    "autoawq": ("gemm",),
    "modelopt": ("fp8", "nvfp4"),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_logits_of_the_converted_file_are_those_of_the_tools_own_weights(tool: str, tmp_path: Path) -> None:
    source, tokens = small_model("llama", tmp_path / "source"), tmp_path / "tokens.json"
    tokens.write_text(str(PROMPT))
    run_inside(tool, f"source_{tool}.py", source, tokens, tmp_path)
    plain = _f32_logits(source, tmp_path / "plain")
    for case in TOOLS[tool]:
        expected = np.load(tmp_path / f"{case}.npy")
        assert _difference(_f32_logits(tmp_path / case, tmp_path / f"{case}-GGUF"), expected) < BOUND, case
        if "8" not in case:
            assert _difference(plain, expected) > QUANTIZATION, case


def _f32_logits(folder: Path, out: Path) -> np.ndarray:
    done = quantkit("gguf", folder, "-t", "f32", "-o", out)
    assert done.code == 0, done.stderr
    (file,) = out.rglob("*.gguf")
    return logits(file, PROMPT)


def _difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """The worst token's root mean square difference, in standard deviations of all logits."""
    return float(np.sqrt(np.mean((actual - expected) ** 2, axis=1)).max() / expected.std())
