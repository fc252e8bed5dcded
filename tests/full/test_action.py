"""action.yml: its shell steps run as GitHub's runner runs them, with the expressions filled in."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.helpers.tiny import tiny_llama

ROOT = Path(__file__).parents[2]


def filled(text: str, inputs: dict[str, str]) -> str:
    """The text with `${{ inputs.NAME }}` filled in; no other expression is known here."""
    text = re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: inputs[match[1]], text)
    assert "${{" not in text, text
    return text


@pytest.mark.full
@pytest.mark.skipif(os.name == "nt", reason="bash")
def test_the_action_installs_quantkit_converts_and_gives_the_document(tmp_path: Path) -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    model = tiny_llama(tmp_path / "a model", dtype="bf16", variant="smollm2")
    arguments = f"gguf '{model}' -t q8_0 -t q4_0 --no-logits -o '{tmp_path / 'an output; touch stray'}'"
    inputs = {name: str(value.get("default", "")) for name, value in action["inputs"].items()}
    inputs["arguments"] = arguments
    files = {name: tmp_path / name.lower() for name in ("GITHUB_ENV", "GITHUB_OUTPUT")}
    environment = {
        **os.environ,
        **{name: str(path) for name, path in files.items()},
        "RUNNER_TEMP": str(tmp_path),
        "GITHUB_ACTION_PATH": str(ROOT),
    }
    environment.pop("PYTHONPATH", None)
    for step in action["runs"]["steps"]:
        if "run" not in step:
            assert step["uses"].startswith("actions/setup-python@")
            continue
        own = {name: filled(value, inputs) for name, value in step.get("env", {}).items()}
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", filled(step["run"], inputs)]
        subprocess.run(command, env={**environment, **own}, cwd=tmp_path, check=True, timeout=280)
        if files["GITHUB_ENV"].exists():
            environment |= dict(line.split("=", 1) for line in files["GITHUB_ENV"].read_text().splitlines())
    outputs = dict(line.split("=", 1) for line in files["GITHUB_OUTPUT"].read_text().splitlines())
    document = json.loads(Path(outputs["document"]).read_text())
    assert [output["type"] for output in document["outputs"]] == ["q8_0", "q4_0"]
    for output in document["outputs"]:
        assert (Path(document["folder"]) / output["files"][0]["name"]).stat().st_size == output["bytes"]
    assert not (tmp_path / "stray").exists()
