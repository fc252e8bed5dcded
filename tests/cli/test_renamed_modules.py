"""Quantized folders whose tool named the modules otherwise than the hub, as GPTQModel does for Mixtral."""

import json
import re
from pathlib import Path

import pytest

from quantkit.quant.grid import Grid
from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama
from tests.packed.folders import write_folder

# GPTQModel's definition of Mixtral saves the names of transformers 5's modules, with gate, up and down as experts.
NAMES = (
    ("block_sparse_moe.gate.", "mlp.gate."),
    (r"block_sparse_moe\.experts\.(\d+)\.w1\.", r"mlp.experts.\1.gate_proj."),
    (r"block_sparse_moe\.experts\.(\d+)\.w3\.", r"mlp.experts.\1.up_proj."),
    (r"block_sparse_moe\.experts\.(\d+)\.w2\.", r"mlp.experts.\1.down_proj."),
)
GATE = (
    "model.layers.0.block_sparse_moe.gate.weight is missing from the checkpoint, which has tensors like"
    " model.layers.0.mlp.gate.weight instead"
)
EXPERT = (
    "model.layers.0.block_sparse_moe.experts.0.w1.weight is missing from the checkpoint, which has tensors like"
    " model.layers.0.mlp.experts.0."
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("renamed") / "M", variant="mixtral")


@pytest.fixture(scope="module", params=["awq", "gptq"])
def renamed(request: pytest.FixtureRequest, source: Path) -> Path:
    folder = source.with_name(f"M-{request.param}")
    write_folder(source, folder, request.param, Grid(4, 32, request.param == "gptq"))
    path = folder / "model.safetensors"
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    head = json.dumps({other_name(name): entry for name, entry in header.items()}).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + data[start:])
    return folder


def other_name(name: str) -> str:
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def test_it_is_one_sentence_that_names_the_tensor_and_what_the_folder_has_instead(
    source: Path, renamed: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    for command in (
        ("convert", renamed, "-t", "q8_0", "-o", tmp_path),
        ("gguf", renamed, "-t", "q8_0", "-o", tmp_path),
        ("measure", source, renamed, "--text", text, "--ctx", "32", "--chunks", "1", "-o", tmp_path / "report"),
    ):
        answer = quantkit(*command)
        assert answer.code == 1, (command, answer.stderr)
        assert (GATE if command[0] == "measure" else EXPERT) in answer.sentence, answer.sentence
        assert "take the original checkpoint" in answer.sentence and "unexpected" not in answer.stderr
    page = " ".join(quantkit("inspect", renamed).stdout.split())
    assert "converts no" in page and EXPERT in page
