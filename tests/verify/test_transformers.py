"""`--reference transformers` where it cannot compare. tests/full/test_reference.py runs the real package."""

import json
import sys
from pathlib import Path

import pytest

from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("reference") / "base", variant="llama3", layers=1)


def python(folder: Path, body: str) -> Path:
    """An interpreter with stubs: `body` is the module transformers."""
    (folder / "stubs" / "torch").mkdir(parents=True)
    (folder / "stubs" / "torch" / "__init__.py").write_text("float32 = None\ninference_mode = None\n")
    (folder / "stubs" / "transformers.py").write_text(body)
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={folder / "stubs"} exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


AUTO = """
class AutoModelForCausalLM:
    @staticmethod
    def from_pretrained(folder, **settings):
        assert settings["trust_remote_code"] is False and settings["local_files_only"] is True
        {}
"""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ModuleNotFoundError(name='transformers')", "has no transformers; name a Python with torch and"),
        (
            AUTO.format("raise ValueError('this architecture is unknown')"),
            "transformers cannot compute the logits (ValueError: this architecture is unknown)",
        ),
        (AUTO.format("import os; os._exit(9)"), "transformers stopped with code 9 (too little memory?)"),
        (AUTO.format("return None, {'missing_keys': ['lm_head.weight']}"), "it finds no weights for lm_head.weight"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_skipped_with_one_sentence(
    body: str, words: str, base: Path, tmp_path: Path
) -> None:
    if "missing_keys" in body:
        body += "\n"
    interpreter = python(tmp_path, body)
    options = ("-t", "f16", "-o", tmp_path, "--no-logits", "--format", "json")
    answer = quantkit("gguf", base, *options, "--reference", "transformers", "--converter-python", interpreter)
    assert answer.code == 0, answer.stderr
    (check,) = [c for c in json.loads(answer.stdout)["outputs"][0]["checks"] if c["name"] == "transformers"]
    assert check["status"] == "skipped" and words in check["detail"], check


def test_a_gguf_and_a_missing_python_are_refused(base: Path, tmp_path: Path) -> None:
    answer = quantkit("gguf", base, "-t", "f16", "-o", tmp_path, "--no-logits")
    assert answer.code == 0
    (file,) = tmp_path.rglob("*.gguf")
    answer = quantkit("gguf", file, "-t", "q8_0", "-o", tmp_path / "a", "--reference", "transformers")
    assert answer.code == 2 and "compares GGUF types of a checkpoint" in answer.sentence
    words = ("--reference", "transformers", "--converter-python", tmp_path / "none")
    answer = quantkit("gguf", base, "-t", "q8_0", "-o", tmp_path / "b", *words)
    assert answer.code == 2 and "was not found; correct --converter-python" in answer.sentence
