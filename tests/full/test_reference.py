"""`--reference transformers`: the real package, in an environment of its own, for models with and without a family."""

import json
from pathlib import Path

import numpy as np
import pytest

from demo.safetensors_file import write_safetensors
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import UnknownArchitectureError
from quantkit.outputs import opening
from tests.adapters.cases import write_base
from tests.helpers.command import Answer, quantkit
from tests.helpers.peer import newest_converter

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


def convert(base: Path, out: Path, *words: object) -> tuple[Answer, dict[str, dict[str, str]]]:
    """The answer, and the record of the check by type."""
    answer = quantkit("gguf", base, "-o", out, "--reference", "transformers", *map(str, words), "--format", "json")
    checks = {
        output["type"]: next(check for check in output["checks"] if check["name"] == "transformers")
        for output in json.loads(answer.stdout or "{}").get("outputs", [])
    }
    return answer, checks


def test_a_familys_files_agree_with_transformers_and_the_record_states_it(tmp_path: Path) -> None:
    base = write_base("plain", tmp_path / "plain")
    python = newest_converter().python
    answer, checks = convert(base, tmp_path, "-t", "f32", "-t", "q8_0", "--converter-python", python)
    assert answer.code == 0, answer.stderr
    assert [check["status"] for check in checks.values()] == ["passed", "passed"]
    assert "correlation 1.00000 with transformers' over 3 windows" in checks["f32"]["detail"]
    record = (tmp_path / "plain-GGUF" / "quantkit.json").read_text()
    assert "with transformers' over 3 windows" in record


def test_a_model_without_a_family_agrees_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise UnknownArchitectureError("the architecture of this test is not supported yet")

    monkeypatch.setattr(opening, "open_model", unknown)
    base, peer = write_base("plain", tmp_path / "plain"), newest_converter()
    words = ("--converter", peer.source, "--converter-python", peer.python, "--pre", "llama-bpe")
    answer, checks = convert(base, tmp_path, "-t", "f32", *words)
    assert answer.code == 0, answer.stderr
    assert checks["f32"]["status"] == "passed" and "correlation 1.00000" in checks["f32"]["detail"]


def test_weights_that_transformers_reads_otherwise_fail_the_check(tmp_path: Path) -> None:
    """The Python of transformers loads a copy in which the rows of each down projection are reversed."""
    base = write_base("plain", tmp_path / "plain")
    with open_checkpoint(str(base)) as opened:
        tensors = {
            name: np.array(opened.read_rows(name, 0, t.n_rows)).reshape(t.shape) for name, t in opened.tensors.items()
        }
    other = write_base("plain", tmp_path / "other")
    changed = {
        name: ("F32", values[::-1].copy() if "down_proj" in name else values) for name, values in tensors.items()
    }
    write_safetensors(other / "model.safetensors", changed)
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nsed -i \'s|{base}|{other}|\' "$2"\nexec {newest_converter().python} "$@"\n')
    wrapper.chmod(0o755)
    answer, checks = convert(base, tmp_path, "-t", "f32", "--converter-python", wrapper)
    assert answer.code == 3
    assert checks["f32"]["status"] == "failed" and "with transformers', below" in checks["f32"]["detail"]
    assert not (tmp_path / "plain-GGUF" / "plain-F32.gguf").exists()
