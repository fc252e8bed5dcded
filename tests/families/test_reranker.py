"""Qwen3-Reranker: the rows of "yes" and "no" as a classifier, and llama.cpp's scores against transformers' logits."""

import json
from pathlib import Path

import numpy as np
import pytest

from quantkit.llamacpp.evaluation import embeddings
from tests.families.expected import expected, read_gguf, tensor_hash, write_checkpoint
from tests.families.models import TOKENS, all_cases, weight
from tests.helpers.command import quantkit

YES, NO = 270, 271


def reranker(folder: Path, *, tied: bool) -> Path:
    """A tiny Qwen 3 whose tokenizer has both answers, with the name of a reranker."""
    write_checkpoint("qwen3-embedding", folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    for text, number in (("yes", YES), ("no", NO)):
        del vocab[next(token for token, other in vocab.items() if other == number)]
        tokenizer["added_tokens"].append(
            {
                "id": number,
                "content": text,
                "special": False,
                "normalized": False,
                **dict.fromkeys(("single_word", "lstrip", "rstrip"), False),
            }
        )
        vocab[text] = number
    merges = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = [
        merge for merge in merges if "".join(merge if isinstance(merge, list) else merge.split(" ")) in vocab
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    if not tied:
        from demo.safetensors_file import write_safetensors

        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
        write_safetensors(
            folder / "model.safetensors", {name: ("F32", values) for name, values in _with_head().items()}
        )
    return folder


def _with_head() -> dict[str, np.ndarray]:
    shapes = expected("qwen3-embedding").native["layout"]
    seed = all_cases()["qwen3-embedding"][1].seed
    tensors = {name: weight(seed, name, tuple(shape)) for name, shape in shapes.items()}
    return {**tensors, "lm_head.weight": weight(5, "lm_head", tuple(shapes["embed_tokens.weight"]))}


@pytest.mark.parametrize("tied", [True, False])
def test_the_classifier_has_the_rows_of_both_answers_and_gives_their_softmax(tied: bool, tmp_path: Path) -> None:
    folder = reranker(tmp_path / "Tiny-Qwen3-Reranker", tied=tied)
    done = quantkit("gguf", folder, "-t", "f32", "-o", tmp_path / "out")
    assert done.code == 0, done.stderr
    path = next((tmp_path / "out").rglob("*.gguf"))
    keys, tensors = read_gguf(path)
    tensors_of_source = _with_head()
    head = tensors_of_source["embed_tokens.weight" if tied else "lm_head.weight"]
    assert keys["qwen3.pooling_type"] == 4
    assert keys["qwen3.classifier.output_labels"] == ["yes", "no"]
    assert "output.weight" not in tensors
    assert tensors["cls.output.weight"][2] == tensor_hash(head[[YES, NO]])
    (ours,) = embeddings(path, [TOKENS])
    assert ours.sum() == pytest.approx(1.0, abs=1e-5)
    if tied:
        logits = expected("qwen3-embedding").logits[-1]
        assert np.log(ours[0, 0] / ours[0, 1]) == pytest.approx(
            logits[YES] - logits[NO], abs=0.01 * float(logits.std())
        )


def test_the_readme_of_a_renamed_folder_names_the_reranker(tmp_path: Path) -> None:
    folder = reranker(tmp_path / "model", tied=True)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Qwen3-Reranker-0.6B\n")
    done = quantkit("gguf", folder, "-t", "q8_0", "-o", tmp_path / "out", "--format", "json")
    assert done.code == 0, done.stderr
    checks = {check["name"]: check["status"] for check in json.loads(done.stdout)["outputs"][0]["checks"]}
    assert checks["embeddings"] == "passed"


@pytest.mark.full
def test_measure_compares_the_scores_of_a_reranker(tmp_path: Path) -> None:
    folder = reranker(tmp_path / "Tiny-Qwen3-Reranker", tied=True)
    assert quantkit("gguf", folder, "-t", "f32", "-t", "q8_0", "-o", tmp_path / "out").code == 0
    files = sorted((tmp_path / "out").rglob("*.gguf"))
    done = quantkit("measure", *files, "-o", tmp_path / "report", "--format", "json")
    assert done.code == 0, done.stderr
    (_, ours) = json.loads(done.stdout)["models"]
    assert ours["embeddings"]["score_correlation"] > 0.9


def test_a_tokenizer_without_the_answers_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint("qwen3-embedding", tmp_path / "Tiny-Qwen3-Reranker")
    done = quantkit("gguf", folder, "-t", "q8_0", "-o", tmp_path / "out")
    assert done.code == 1
    assert "its tokenizer has no token 'yes'; rename the folder" in done.stderr
