"""Dense modules of EmbeddingGemma and LFM2: in the GGUF and in llama.cpp's vectors; modules that are refused."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo.safetensors_file import write_safetensors
from quantkit.errors import QuantkitError
from quantkit.families.base.pooling import pooling_of
from quantkit.llamacpp.evaluation import embeddings, hidden_states
from tests.families.expected import expected, read_gguf, tensor_hash, write_checkpoint
from tests.families.models import TOKENS, weight
from tests.families.test_pooling import with_pooling
from tests.helpers.command import quantkit

IDENTITY = "torch.nn.modules.linear.Identity"
HIDDEN, WIDE = 64, 96


def with_dense(folder: Path, widths: tuple[int, ...] = (HIDDEN, WIDE, HIDDEN), **settings: Any) -> list[np.ndarray]:
    """Add Dense modules of these widths, as sentence-transformers saves them; returns their matrices."""
    modules = json.loads((with_pooling(folder, {"pooling_mode_mean_tokens": True}) / "modules.json").read_text())
    matrices = []
    for number, (inputs, outputs) in enumerate(itertools.pairwise(widths), 2):
        name = f"{number}_Dense"
        modules.insert(-1, {"idx": number, "name": name, "path": name, "type": "sentence_transformers.models.Dense"})
        (folder / name).mkdir()
        stated = {"in_features": inputs, "out_features": outputs, "bias": False, "activation_function": IDENTITY}
        (folder / name / "config.json").write_text(json.dumps({**stated, **settings}))
        matrix = weight(3, name, (outputs, inputs))
        write_safetensors(folder / name / "model.safetensors", {"linear.weight": ("F32", matrix)})
        matrices.append(matrix)
    (folder / "modules.json").write_text(json.dumps(modules))
    return matrices


def test_an_embedding_passes_both_dense_modules(tmp_path: Path) -> None:
    folder = write_checkpoint("embedding-gemma", tmp_path / "model")
    first, second = with_dense(folder)
    done = quantkit("gguf", folder, "-t", "f32", "-o", tmp_path / "out")
    assert done.code == 0, done.stderr
    path = next((tmp_path / "out").rglob("*.gguf"))
    keys, tensors = read_gguf(path)
    assert {key[len("gemma-embedding.dense_") :]: keys[key] for key in keys if ".dense_" in key} == {
        "2_feat_in": HIDDEN,
        "2_feat_out": WIDE,
        "3_feat_in": WIDE,
        "3_feat_out": HIDDEN,
    }
    assert [tensors[f"dense_{n}.weight"][2] for n in (2, 3)] == [tensor_hash(first), tensor_hash(second)]
    (ours,) = embeddings(path, [TOKENS])
    theirs = expected("embedding-gemma").logits.mean(axis=0) @ first.T @ second.T
    assert ours[0] @ theirs > 0.9999 * np.linalg.norm(ours[0]) * np.linalg.norm(theirs)
    assert np.abs(ours[0] - theirs).max() < 0.01 * theirs.std()


def with_colbert(folder: Path, name: str = "1_Dense", outputs: int = 32) -> np.ndarray:
    """Add the modules of a ColBERT model of PyLate, a Dense one without a pooling; returns its matrix."""
    kinds = {"": "sentence_transformers.models.Transformer", name: "pylate.models.Dense.Dense"}
    modules = [{"idx": n, "name": str(n), "path": path, "type": kind} for n, (path, kind) in enumerate(kinds.items())]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / name).mkdir()
    stated = {"in_features": HIDDEN, "out_features": outputs, "bias": False, "activation_function": IDENTITY}
    (folder / name / "config.json").write_text(json.dumps(stated))
    matrix = weight(3, name, (outputs, HIDDEN))
    write_safetensors(folder / name / "model.safetensors", {"linear.weight": ("F32", matrix)})
    return matrix


def test_each_token_passes_the_dense_module_of_a_colbert_model(tmp_path: Path) -> None:
    folder = write_checkpoint("lfm2-encoder", tmp_path / "model")
    matrix = with_colbert(folder)
    done = quantkit("gguf", folder, "-t", "f32", "-o", tmp_path / "out")
    assert done.code == 0, done.stderr
    path = next((tmp_path / "out").rglob("*.gguf"))
    keys, tensors = read_gguf(path)
    assert keys["lfm2.embedding_length_out"] == len(matrix)
    assert tensors["dense_2.weight"][2] == tensor_hash(matrix)
    theirs = expected("lfm2-encoder").logits @ matrix.T
    assert np.abs(hidden_states(path, TOKENS) - theirs).max() < 0.02 * theirs.std()


def test_another_dense_module_of_lfm2_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint("lfm2-colbert", tmp_path / "model")
    with_colbert(folder, "2_Dense")
    done = quantkit("gguf", folder, "-t", "q8_0", "-o", tmp_path / "out")
    assert done.code == 1
    assert "has the Dense modules 2_Dense (64 to 32); llama.cpp runs 1_Dense alone, from 64 values" in done.sentence


@pytest.mark.full
def test_measure_compares_files_with_the_checkpoint_and_its_modules(tmp_path: Path) -> None:
    folder = write_checkpoint("embedding-gemma", tmp_path / "model")
    with_dense(folder)
    assert quantkit("gguf", folder, "-t", "f32", "-o", tmp_path / "out").code == 0
    done = quantkit("measure", folder, tmp_path / "out" / "model-GGUF", "-o", tmp_path / "report", "--format", "json")
    assert done.code == 0, done.stderr
    (_, ours) = json.loads(done.stdout)["models"]
    assert ours["embeddings"]["cosine_worst"] > 0.9999


@pytest.mark.parametrize(
    ("widths", "settings", "sentence"),
    [
        ((HIDDEN, WIDE, HIDDEN), {"bias": True}, "states a bias or an activation"),
        ((HIDDEN, WIDE, HIDDEN), {"activation_function": "torch.nn.modules.activation.Tanh"}, "or an activation"),
        ((HIDDEN, WIDE), {}, "llama.cpp runs 2_Dense and 3_Dense, from 64 values and back to 64"),
        ((HIDDEN, WIDE, 32), {}, "llama.cpp runs 2_Dense and 3_Dense, from 64 values and back to 64"),
        ((HIDDEN, WIDE, HIDDEN), {"in_features": None}, "lacks its sizes"),
    ],
)
def test_modules_that_llama_cpp_does_not_run_are_refused(
    widths: tuple[int, ...], settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    folder = write_checkpoint("embedding-gemma", tmp_path / "model")
    with_dense(folder, widths, **settings)
    done = quantkit("gguf", folder, "-t", "q8_0", "-o", tmp_path / "out")
    assert (done.code, len(done.stderr.strip().splitlines())) == (1, 1)
    assert sentence in done.stderr


def test_a_module_without_its_weights_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint("embedding-gemma", tmp_path / "model")
    with_dense(folder)
    (folder / "3_Dense" / "model.safetensors").unlink()
    done = quantkit("gguf", folder, "-t", "q8_0", "-o", tmp_path / "out")
    assert done.code == 1
    assert "3_Dense.linear.weight is missing from the checkpoint" in done.stderr


def test_a_family_whose_graph_has_no_dense_modules_refuses_them(tmp_path: Path) -> None:
    folder = write_checkpoint("bert", tmp_path / "model")
    with_dense(folder)
    with pytest.raises(QuantkitError, match=r"has a Dense module, which llama\.cpp does not run"):
        pooling_of(folder)
    assert "has a Dense module" in quantkit("gguf", folder, "-t", "q8_0", "-o", tmp_path / "out").stderr


def test_causal_attention_of_a_bare_gemma_3_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint("embedding-gemma", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "use_bidirectional_attention": False}))
    done = quantkit("gguf", folder, "-t", "q8_0", "-o", tmp_path / "out")
    assert "use_bidirectional_attention is not true" in done.stderr


def test_plan_names_the_commands_of_an_embedding_model_with_a_decoders_cache(tmp_path: Path) -> None:
    done = quantkit("gguf", write_checkpoint("lfm2-encoder", tmp_path / "model"), "-t", "f32", "-o", tmp_path / "out")
    assert done.code == 0, done.stderr
    answer = quantkit("plan", next((tmp_path / "out").rglob("*.gguf")))
    assert "llama-embedding -m" in answer.stdout
    assert "llama-cli" not in answer.stdout
