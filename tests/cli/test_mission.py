"""The models quantkit grew from, at their published sizes: what the commands say of them, from headers alone."""

import json
import re
from pathlib import Path

import pytest

from tests.families.published import MISSION, Published, write_sparse
from tests.helpers.command import quantkit


@pytest.mark.parametrize("model", MISSION, ids=lambda model: re.sub(r"\W+", "-", model.name))
def test_a_model_of_the_mission_is_planned_and_described(model: Published, tmp_path: Path) -> None:
    folder = write_sparse(model, tmp_path / "model")

    described = quantkit("inspect", folder, "--format", "json")
    assert described.code == 0, described.stderr
    assert json.loads(described.stdout)["weights"]["parameters"] == model.parameters

    planned = quantkit("gguf", folder, "-t", "q4_0", "-t", "q2_k", "--dry-run", "--format", "json")
    assert planned.code == 0, planned.stderr
    outputs = {output["type"]: output for output in json.loads(planned.stdout)["outputs"]}
    # q4_0 is 4.5 bits a weight and q2_k 2.63; a head has 6.56, which tells where a vocabulary is large
    bits = {name: 8 * output["bytes"] / model.parameters for name, output in outputs.items()}
    assert 4.5 <= bits["q4_0"] < 5.1
    assert 2.6 < bits["q2_k"] < 3.9
