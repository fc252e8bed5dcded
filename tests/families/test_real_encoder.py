"""all-MiniLM-L6-v2's real weights: embeddings of llama.cpp against transformers' own."""

from pathlib import Path

import numpy as np
import pytest

from quantkit.llamacpp.evaluation import embeddings
from quantkit.llamacpp.token_ids import ids_with_special_tokens
from tests.helpers.command import quantkit
from tests.helpers.minilm import GOLDEN, TEXTS, minilm_checkpoint
from tests.helpers.paraphrase_l3 import GOLDEN as ONNX_GOLDEN
from tests.helpers.paraphrase_l3 import paraphrase_checkpoint

LEAST = {"F32": 0.9999, "Q8_0": 0.998}


def test_embeddings_of_a_real_encoder_are_those_of_transformers(tmp_path: Path) -> None:
    folder = minilm_checkpoint(tmp_path / "all-MiniLM-L6-v2")
    words = [word for kind in LEAST for word in ("-t", kind.lower())]
    done = quantkit("gguf", folder, *words, "-o", tmp_path / "out", "--format", "json")
    assert done.code == 0, done.stderr
    assert "cuts texts to 256 tokens" in done.stderr
    expected = np.load(GOLDEN)["embeddings"]
    for kind, least in LEAST.items():
        file = next((tmp_path / "out").rglob(f"*-{kind}.gguf"))
        ours = np.concatenate(embeddings(file, ids_with_special_tokens(file, TEXTS)))
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(expected, axis=1)
        cosines = (ours * expected).sum(axis=1) / norms
        assert cosines.min() > least, (kind, cosines)


@pytest.mark.full
def test_embeddings_of_a_checkpoint_rebuilt_from_onnx_are_those_of_its_graph(tmp_path: Path) -> None:
    folder = paraphrase_checkpoint(tmp_path / "paraphrase-MiniLM-L3-v2")
    least = {"F32": 0.9999, "F16": 0.9999, "Q8_0": 0.998, "Q4_K_M": 0.95}
    words = [word for kind in least for word in ("-t", kind.lower())]
    done = quantkit("gguf", folder, *words, "-o", tmp_path / "out")
    assert done.code == 0, done.stderr
    expected = np.load(ONNX_GOLDEN)["embeddings"]
    for kind, floor in least.items():
        file = next((tmp_path / "out").rglob(f"*-{kind}.gguf"))
        ours = np.concatenate(embeddings(file, ids_with_special_tokens(file, TEXTS)))
        cosines = (ours * expected).sum(axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(expected, axis=1)
        print(f"{kind}: {file.stat().st_size} bytes, cosine {cosines.mean():.7f}, at worst {cosines.min():.7f}")
        assert cosines.min() > floor, (kind, cosines)
