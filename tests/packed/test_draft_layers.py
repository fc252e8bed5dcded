"""Layers that predict a later token stay in 16 bits in AWQ and GPTQ folders, and config.json says so."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.families.base.native import Native
from quantkit.outputs.packed_folders import FolderRequest, all_layers, plan_folder_of
from quantkit.quant.grid import Grid
from tests.families.expected import write_checkpoint


def excluded_by_autoawq(name: str, config: dict[str, Any]) -> bool:
    """As transformers 5 matches a module's name: its start or its end."""
    return any(
        re.match(rf"{key}\.", name) or re.match(key, name) or name.endswith(key)
        for key in config["modules_to_not_convert"]
    )


def excluded_by_dynamic(name: str, config: dict[str, Any]) -> bool:
    """As GPTQModel and vLLM read `dynamic`."""
    return any(re.match(pattern.removeprefix("-:"), name) for pattern in config["dynamic"])


@pytest.mark.parametrize(("case", "place"), [("qwen35", "mtp."), ("glm4moe", "model.layers.")])
def test_config_excludes_every_draft_linear_and_no_quantized_one(case: str, place: str, tmp_path: Path) -> None:
    write_checkpoint(case, tmp_path / case)
    with open_checkpoint(str(tmp_path / case)) as checkpoint:
        native = Native(checkpoint)
        layers = all_layers(native)
        draft = [
            name.removesuffix(".weight")
            for name, tensor in native.tensors.items()
            if name.startswith(place)
            and native.decoder.layer_of(name) is None
            and len(tensor.shape) == 2
            and not name.startswith(native.decoder.embedding)
        ]
        assert len(draft) > 4
        for method, excluded in (
            ("awq", excluded_by_autoawq),
            ("awq", excluded_by_dynamic),
            ("gptq", excluded_by_dynamic),
        ):
            request = FolderRequest("awq" if method == "awq" else "gptq", Grid(4, 32, method == "gptq"))
            plan = plan_folder_of(native, layers, request, tmp_path / "out")
            config = json.loads(json.dumps(plan.quantization_config()))
            assert not plan.quantized.keys() & set(draft)
            assert [name for name in draft if not excluded(name, config)] == []
            assert [name for name in plan.quantized if excluded(name, config)] == []
