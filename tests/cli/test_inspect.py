"""`quantkit inspect` as a user meets it: a page to read, one JSON document, one sentence when something is wrong."""

import json
import shutil
from pathlib import Path

import pytest

from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("source") / "model", variant="mixtral")


def facts(text: str) -> dict[str, str]:
    """The lines that start with a label."""
    return {line[:12].strip(): line[12:] for line in text.splitlines() if line[:1].islower()}


def test_the_page_has_a_line_for_each_fact(checkpoint: Path) -> None:
    answer = quantkit("inspect", checkpoint)
    assert answer.code == 0 and not answer.stderr
    assert answer.stdout.startswith("model: bf16 checkpoint\n\n")
    lines = facts(answer.stdout)
    assert lines["parameters"] == "3.935M, 2.363M active for a token"
    assert lines["experts"] == "4, 2 for each token"
    assert lines["context"] == "32768 tokens, rope base 1000000"
    assert lines["weights"] == "16.00 bits per weight"
    assert lines["converts"] == "yes, quantkit gguf takes it"
    assert lines["vocabulary"] == "768 tokens, llama, adds BOS"
    assert "            | <s>Be brief.</s>[INST] Hello! [/INST]Hi, how can I help?</s>[INST] What is 2+2? [/INST]" in (
        answer.stdout.splitlines()
    )
    assert not [line for line in answer.stdout.splitlines() if len(line) > 100 and "|" not in line]


def test_json_is_one_document(checkpoint: Path) -> None:
    answer = quantkit("inspect", checkpoint, "--format", "json")
    document = json.loads(answer.stdout)
    assert document["command"] == "inspect" and document["kind"] == "checkpoint"
    assert document["weights"]["groups"] == [{"type": "BF16", "tensors": 41, "elements": 3935488, "bytes": 7870976}]
    assert document["bytes"] == (checkpoint / "model.safetensors").stat().st_size
    assert answer.stderr == ""


def test_quiet_says_nothing(checkpoint: Path) -> None:
    answer = quantkit("inspect", checkpoint, "--format", "quiet")
    assert (answer.code, answer.stdout, answer.stderr) == (0, "", "")


def test_an_unsupported_model_is_described_all_the_same(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["GrokForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    lines = facts(quantkit("inspect", folder).stdout)
    assert lines["family"] == "unknown (GrokForCausalLM)"
    assert lines["converts"] == "no: architecture GrokForCausalLM is not supported yet"
    assert lines["parameters"] == "3.935M, 2.363M active for a token"


def test_a_strangers_template_cannot_reach_the_terminal(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": "\x1b]0;mine\x07{{ 1 }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    answer = quantkit("inspect", folder)
    assert answer.code == 0
    assert "\x1b" not in answer.stdout and "\x07" not in answer.stdout
    assert r"| \x1b]0;mine\x071" in answer.stdout


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("gone.gguf",), 1, "gone.gguf not found"),
        (("nowhere",), 1, "neither an existing folder nor a hub id"),
        (("ORG/NAME", "--offline"), 1, "ORG/NAME is not in the hub cache"),
        ((), 2, ""),
    ],
)
def test_what_cannot_be_found_is_one_sentence(words: tuple[str, ...], code: int, sentence: str, tmp_path: Path) -> None:
    answer = quantkit("inspect", *words, env={"HF_HOME": str(tmp_path)}, cwd=tmp_path)
    assert answer.code == code
    assert answer.stdout == ""
    if sentence:
        assert sentence in answer.sentence


def test_the_help_fits_80_columns() -> None:
    text = quantkit("inspect", "--help").stdout
    assert "PATH" in text
    assert max(map(len, text.splitlines())) <= 80
