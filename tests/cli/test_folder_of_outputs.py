"""The folders that a conversion leaves, given to the commands that take a file or a checkpoint."""

import json
import shlex
from pathlib import Path

import pytest

from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """out/one-GGUF with one model in two shards, out/two-GGUF with two."""
    folder = tmp_path_factory.mktemp("outputs")
    quiet = ("--no-logits", "--format", "quiet", "-o", "out")
    for name, words in {"one": ("-t", "q8_0", "--split-max-size", "300K"), "two": ("-t", "q8_0", "-t", "f16")}.items():
        tiny_llama(folder / name, variant="llama3")
        assert quantkit("gguf", name, *words, *quiet, cwd=folder).code == 0
    return folder


def test_a_folder_with_one_model_is_run_planned_and_served(place: Path) -> None:
    answer = quantkit("run", "out/one-GGUF", "-p", "Hello", "-n", "2", "--ctx", "64", cwd=place)
    assert answer.code == 0 and "one-Q8_0-00001-of-" in answer.stderr, answer.stderr
    plan = quantkit("plan", "out/one-GGUF", "--no-stored-speeds", cwd=place)
    assert plan.code == 0 and "llama-cli -m out/one-GGUF/one-Q8_0-00001-of-" in plan.stdout, plan.stderr
    words = ("--dry-run", "--ctx", "64", "--server", "llama-cpp-python", "--api-key", "hidden")
    served = quantkit("serve", "out/one-GGUF", *words, cwd=place)
    assert served.code == 0 and "out/one-GGUF/one-Q8_0-00001-of-" in served.stdout, served.stderr
    settings = shlex.split(served.stdout)[1]
    assert shlex.split(served.stdout)[0] == "echo" and json.loads(settings)["n_ctx"] == 64 and "hidden" not in settings


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("run", "out/two-GGUF", "-p", "x"), "out/two-GGUF holds 2 GGUF models; pass one of them, such as "),
        (("plan", "out/two-GGUF"), "out/two-GGUF holds 2 GGUF models; pass one of them, such as "),
        (("run", "out", "-p", "x"), "out holds no GGUF model; pass out/one-GGUF"),
        (("serve", "one"), "one is a checkpoint, not a GGUF; convert it with quantkit gguf one -t q4_k_m first"),
        (("inspect", "out"), "out is not a model itself; pass out/one-GGUF"),
        (("awq", "out"), "out is not a model itself; pass /"),
        (
            ("measure", "out", "--text", "README"),
            "out contains neither a config.json nor GGUF files; pass out/one-GGUF",
        ),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_with_the_path_to_pass(
    words: tuple[str, ...], reason: str, place: Path
) -> None:
    (place / "README").write_text("A text to measure on. " * 400)
    refusal = quantkit(*words, cwd=place)
    assert refusal.code in (1, 2) and f"quantkit: {reason}" in refusal.stderr
    assert refusal.stdout == ""
