"""The libraries that made the files of tests/checkpoint/quantized make the same again."""

import json
from pathlib import Path

import pytest

from tests.peers.environments import run_inside

pytestmark = [pytest.mark.peers, pytest.mark.timeout(3600)]

GOLDENS = Path(__file__).parents[1] / "checkpoint" / "quantized"


@pytest.mark.parametrize("name", ["bitsandbytes", "compressed", "gptqmodel", "mlx"])
def test_the_library_stores_and_dequantizes_as_the_committed_file_says(name: str, tmp_path: Path) -> None:
    run_inside(name, f"goldens_{name}.py", tmp_path / "made.json")
    assert json.loads((tmp_path / "made.json").read_text()) == json.loads((GOLDENS / f"{name}.json").read_text())
