"""A GGUF read as the checkpoint that it was made from (`--base`), against that checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.families import find_family
from quantkit.families.base.mapping import renamed
from quantkit.outputs.gguf_checkpoint import checkpoint_of_gguf
from tests.families.expected import write_checkpoint
from tests.helpers.command import quantkit


def converted(model: str, folder: Path, *options: str) -> tuple[Path, Path]:
    """The tiny checkpoint of a case, and its GGUF in F32."""
    source = write_checkpoint(model, folder / model)
    done = quantkit("gguf", source, "-t", "f32", "--name", "M", "-o", folder, *options)
    assert done.code == 0, done.stderr
    return source, folder / "M-GGUF" / "M-F32.gguf"


@pytest.mark.parametrize(
    "model",
    [
        "gemma3",  # norms without the 1 that they add
        "plamo3",  # other constants
        "mamba2",  # exponents, and other shapes of the same elements
        "qwen2moe",  # a matrix of one row, which the GGUF has as a vector
        "deepseek-v2",  # parts of a matrix, transposed
        "gpt2",  # whole matrices, transposed
        "qwen35-tied-equal-heads",  # columns in another order, and a layer that predicts a later token
        "glm4moe",  # such a layer after those of a mixture
        "stablelm2-12b",  # tensors stacked over heads
        "gemma3n",  # over streams
        "gpt-oss",  # experts of which one tensor has the gate and the up projection, in turn and transposed
        "llama4",  # one beside the other
        "qwen3-vl-moe",
        "falcon-h1",  # rows that are multiplied
    ],
)
def test_a_gguf_has_the_tensors_of_its_checkpoint(model: str, tmp_path: Path) -> None:
    source, file = converted(model, tmp_path)
    with open_checkpoint(str(source)) as original, checkpoint_of_gguf(file, str(source)) as read:
        family = find_family(original.config)
        # a model that sees gives its text model's names
        published = {renamed(family, name): name for name in original.tensors if ".visual." not in name}
        tensors = {name: original.tensors[source] for name, source in published.items()}
        assert {n: t.shape for n, t in read.tensors.items()} == {n: t.shape for n, t in tensors.items()}
        for name, tensor in tensors.items():
            rows = tensor.n_rows
            expected = np.asarray(original.read_rows(published[name], 0, rows), np.float32)
            # 1 + weight is rounded to float32: half a unit in the last place of a sum below 4
            np.testing.assert_allclose(read.read_rows(name, 0, rows), expected, rtol=2e-7, atol=1.2e-7, err_msg=name)
            some = read.read_rows(name, rows // 3, rows // 3 + 1)
            np.testing.assert_allclose(some, expected[rows // 3 : rows // 3 + 1], rtol=2e-7, atol=1.2e-7, err_msg=name)


def test_a_gguf_without_its_draft_layers_is_a_checkpoint_without_them(tmp_path: Path) -> None:
    source, file = converted("glm4moe", tmp_path, "--mtp", "drop")
    with checkpoint_of_gguf(file, str(source)) as read:
        assert read.config["num_nextn_predict_layers"] == 0
        layers = {int(name.split(".")[2]) for name in read.tensors if ".layers." in name}
        assert layers == set(range(read.config["num_hidden_layers"]))
    done = quantkit("convert", file, "--base", source, "-t", "fp8", "--name", "B", "-o", tmp_path)
    assert done.code == 0, done.stderr
    assert json.loads((tmp_path / "B-FP8" / "config.json").read_text())["num_nextn_predict_layers"] == 0


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("apertus", "numbers in its keys"),  # a folder of it lacked the activations' parameters
        ("kimi-k3", "cannot be undone"),
    ],
)
def test_what_cannot_be_read_back_is_one_sentence(model: str, words: str, tmp_path: Path) -> None:
    source, file = converted(model, tmp_path)
    done = quantkit("convert", file, "--base", source, "-t", "fp8", "-o", tmp_path / "out")
    assert done.code == 1
    assert words in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


def test_the_record_names_the_gguf_and_its_base(tmp_path: Path) -> None:
    source, file = converted("gemma3", tmp_path)
    done = quantkit("convert", file, "--base", source, "-t", "fp8", "--name", "B", "-o", tmp_path)
    assert done.code == 0, done.stderr
    record = json.loads((tmp_path / "B-FP8" / "quantkit.json").read_text())["outputs"]["B-FP8"]
    assert (record["origin"]["source"], record["origin"]["base"]) == ("M-F32.gguf", "gemma3")
    page = " ".join(quantkit("inspect", tmp_path / "B-FP8").stdout.split())
    assert "made from M-F32.gguf with the config of gemma3" in page
