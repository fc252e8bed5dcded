"""What quantization changed in embeddings and in a reranker's scores, from two models' results on the same texts."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_TOP = 10

Array = NDArray[np.float64]


def embedding_figures(reference: Array, candidate: Array, n_queries: int) -> dict[str, Any]:
    """Figures of embeddings (texts, width), of which the first `n_queries` are queries and the others passages.

    Returns `cosine_mean` and `cosine_worst` of a text's two embeddings. `rank_correlation` is Spearman's, of the
    similarities of all queries with all passages. `top10_overlap` is the mean shared part of a query's ten nearest
    passages.
    """
    a, b = _unit(reference), _unit(candidate)
    cosines = np.einsum("ij,ij->i", a, b)
    ours, theirs = (unit[:n_queries] @ unit[n_queries:].T for unit in (b, a))
    nearest = [np.argsort(-similarities, axis=1, kind="stable")[:, :_TOP] for similarities in (ours, theirs)]
    shared = [len(np.intersect1d(one, other)) / len(one) for one, other in zip(*nearest, strict=True)]
    return {
        "cosine_mean": round(float(cosines.mean()), 6),
        "cosine_worst": round(float(cosines.min()), 6),
        "rank_correlation": round(spearman(ours.ravel(), theirs.ravel()), 6),
        "top10_overlap": round(float(np.mean(shared)), 6),
    }


def recall(embeddings: Array, n_queries: int, answers: list[int]) -> float:
    """Share of the queries whose own passage is the nearest one."""
    unit = _unit(embeddings)
    nearest = (unit[:n_queries] @ unit[n_queries:].T).argmax(axis=1)
    return round(float(np.mean(nearest == np.array(answers))), 6)


def score_figures(reference: Array, candidate: Array) -> dict[str, Any]:
    """Figures of scores (pairs,): Pearson's `score_correlation` and Spearman's `rank_correlation`."""
    return {
        "score_correlation": round(float(np.corrcoef(reference, candidate)[0, 1]), 6),
        "rank_correlation": round(spearman(reference, candidate), 6),
    }


def spearman(a: Array, b: Array) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, equal values sharing their mean rank."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: Array = (last - (counts - 1) / 2)[inverse]
    return mean


def _unit(rows: Array) -> Array:
    unit: Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
