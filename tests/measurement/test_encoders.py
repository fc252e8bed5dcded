"""`measure` of encoders: figures against plain formulas, of a tiny BERT against its own checkpoint, and refusals."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from quantkit.llamacpp.evaluation import embeddings
from quantkit.llamacpp.token_ids import ids_with_special_tokens
from quantkit.measurement.embedding_scores import embedding_figures, recall, score_figures, spearman
from quantkit.measurement.encoders import retrieval_set
from tests.families.expected import write_checkpoint
from tests.families.test_pooling import with_pooling
from tests.helpers.command import quantkit
from tests.helpers.tiny_tokenizers import CORPUS


def test_spearman_is_one_minus_the_squared_differences_of_ranks() -> None:
    values = np.random.default_rng(0).permutation(30).astype(float)
    other = np.random.default_rng(1).permutation(30).astype(float)
    assert spearman(values, other) == pytest.approx(1 - 6 * ((values - other) ** 2).sum() / (30 * (30**2 - 1)))
    assert spearman(values, values**3) == pytest.approx(1.0)
    assert spearman(np.array([1.0, 1.0, 2.0]), np.array([3.0, 3.0, 9.0])) == pytest.approx(1.0)


def test_figures_of_embeddings_follow_from_their_definitions() -> None:
    rng = np.random.default_rng(2)
    one, other = rng.standard_normal((26, 8)), rng.standard_normal((26, 8))
    figures = embedding_figures(one, other, 6)
    cosines = [float(a @ b / np.sqrt((a @ a) * (b @ b))) for a, b in zip(one, other, strict=True)]
    assert figures["cosine_mean"] == pytest.approx(np.mean(cosines), abs=1e-6)
    assert figures["cosine_worst"] == pytest.approx(min(cosines), abs=1e-6)
    shared = 0.0
    for query in range(6):
        nearest = []
        for rows in (one, other):
            scores = {p: rows[query] @ rows[p] / np.linalg.norm(rows[p]) for p in range(6, 26)}
            nearest.append(set(sorted(scores, key=lambda p: -scores[p])[:10]))
        shared += len(nearest[0] & nearest[1]) / 10 / 6
    assert figures["top10_overlap"] == pytest.approx(shared, abs=1e-6)
    same = embedding_figures(one, 3 * one, 6)
    assert same == {"cosine_mean": 1.0, "cosine_worst": 1.0, "rank_correlation": 1.0, "top10_overlap": 1.0}
    assert recall(np.concatenate([one[6:12], one[6:]]), 6, list(range(6))) == 1.0
    assert score_figures(one[:, 0], 2 - one[:, 0])["score_correlation"] == -1.0


def test_every_query_has_a_passage_of_its_own() -> None:
    texts = retrieval_set()
    assert len(texts.answers) == len(set(texts.answers)) == len(texts.queries)
    assert len(set(texts.passages)) == len(texts.passages)
    assert max(texts.answers) < len(texts.passages)


def converted(name: str, folder: Path, *types: str) -> Path:
    source = with_pooling(write_checkpoint(name, folder / name), {"pooling_mode_mean_tokens": True})
    words = [word for kind in types for word in ("-t", kind)]
    done = quantkit("gguf", source, *words, "-o", folder / "out")
    assert done.code == 0, done.stderr
    return next((folder / "out").rglob("*.gguf")).parent


def measured(*words: object) -> list[dict[str, float]]:
    done = quantkit("measure", *words, "--gpu-layers", "none", "--format", "json")
    assert done.code == 0, done.stderr
    return [model["embeddings"] for model in json.loads(done.stdout)["models"]]


# a tiny model has 64 positions; the texts that come with the package are longer
@pytest.fixture
def short_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines = [line[:24] for line in CORPUS.splitlines()]
    texts = type(retrieval_set())("lines", lines[:4], lines[4:16], [0, 1, 2, 3])
    monkeypatch.setattr("quantkit.measurement.encoders.retrieval_set", lambda: texts)
    return lines[:16]


def test_a_candidate_is_compared_with_the_reference_file(tmp_path: Path, short_texts: list[str]) -> None:
    folder = converted("bert", tmp_path, "f32", "q8_0")
    files = [folder / f"bert-{kind}.gguf" for kind in ("F32", "Q8_0")]
    reference, candidate = measured(*files, "-o", tmp_path / "report")
    assert "cosine_mean" not in reference
    ids = ids_with_special_tokens(files[0], short_texts)
    one, other = (np.concatenate(embeddings(file, ids)) for file in files)
    cosines = (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert candidate["cosine_worst"] == pytest.approx(cosines.min(), abs=1e-5)
    assert 0.9 < candidate["cosine_mean"] < 1.0
    table = (tmp_path / "report" / "report.md").read_text()
    assert f"{candidate['cosine_mean']:.5f}" in table


def test_the_checkpoint_itself_can_be_the_reference(tmp_path: Path, short_texts: list[str]) -> None:
    assert short_texts
    folder = converted("bert", tmp_path, "f32")
    _, candidate = measured(tmp_path / "bert", folder / "bert-F32.gguf", "-o", tmp_path / "report")
    assert candidate["cosine_worst"] > 0.9999


def test_a_reranker_is_compared_by_its_scores(tmp_path: Path, short_texts: list[str]) -> None:
    assert short_texts
    source = write_checkpoint("bert-reranker", tmp_path / "bert-reranker")
    done = quantkit("gguf", source, "-t", "f32", "-t", "q8_0", "-o", tmp_path / "out")
    assert done.code == 0, done.stderr
    files = sorted((tmp_path / "out").rglob("*.gguf"))
    _, candidate = measured(*files, "-o", tmp_path / "report")
    assert 0.8 < candidate["score_correlation"] < 1.0
    assert "cosine_mean" not in candidate


def test_texts_and_limits_of_decoders_are_refused(tmp_path: Path) -> None:
    folder = converted("bert", tmp_path, "q8_0")
    (tmp_path / "text.txt").write_text("one two three")
    done = quantkit("measure", next(folder.glob("*.gguf")), "--text", tmp_path / "text.txt")
    assert done.code == 2
    assert "leave out --text" in done.stderr
    done = quantkit("run", next(folder.glob("*.gguf")), "-p", "hello")
    assert done.code == 1
    assert "is an encoder, which gives embeddings and no text" in done.stderr


def test_a_file_without_a_pooling_is_refused(tmp_path: Path, short_texts: list[str]) -> None:
    assert short_texts
    source = write_checkpoint("bert", tmp_path / "bert")
    assert quantkit("gguf", source, "-t", "q8_0", "-o", tmp_path / "out").code == 0
    file = next((tmp_path / "out").rglob("*.gguf"))
    shutil.copy(file, tmp_path / "copy.gguf")
    done = quantkit("measure", file, tmp_path / "copy.gguf", "--gpu-layers", "none", "-o", tmp_path / "report")
    assert done.code == 2
    assert "does not state how to pool token vectors" in done.stderr
