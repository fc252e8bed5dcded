"""`measure` of encoders: embeddings or a reranker's scores of the texts that come with the package."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files as resources
from pathlib import Path

import numpy as np

from quantkit.errors import CheckpointError, MeasureError, UsageError
from quantkit.families.base.pooling import dense_modules, pooling_of, through_dense
from quantkit.gguf.reader import read_header, shard_paths
from quantkit.llamacpp.evaluation import embeddings
from quantkit.llamacpp.token_ids import ids_with_special_tokens
from quantkit.measurement.embedding_scores import Array, embedding_figures, recall, score_figures
from quantkit.measurement.gguf_engine import GgufEngine
from quantkit.measurement.subjects import Subject
from quantkit.progress import Progress

_RANK = 4
_PAIRS_A_QUERY = 8


@dataclass(frozen=True)
class Retrieval:
    """Queries and passages; `answers` is the passage of each query."""

    name: str
    queries: list[str]
    passages: list[str]
    answers: list[int]


@cache
def retrieval_set() -> Retrieval:
    """The texts that come with the package: English, Chinese and code."""
    return Retrieval(**json.loads((resources(__package__) / "retrieval.json").read_text(encoding="utf-8")))


def gives_embeddings(path: Path) -> bool:
    """Whether the GGUF at `path`, or the first one of a folder, is of an encoder; False for all else."""
    if path.is_dir() and not (path / "config.json").exists():
        path = next(iter(sorted(path.glob("*.gguf"))), path)
    if path.suffix != ".gguf" or not path.is_file():
        return False
    try:
        header = read_header(shard_paths(path)[0])
    except CheckpointError:
        return False
    return header.is_encoder


def encoder_records(subjects: Sequence[Subject], threads: int, progress: Progress) -> list[dict[str, object]]:
    """The figures of each model, of which the first is the reference, as `embeddings` of report.json.

    Raises:
        MeasureError: the models do not give the same kind of result, or one is not finite.
        UsageError: a model is not an encoder, or its file states no pooling.
    """
    texts = retrieval_set()
    file = next((subject for subject in subjects if isinstance(subject.engine, GgufEngine)), None)
    if file is None:
        raise UsageError("an encoder is measured by its GGUF files; pass one, such as NAME-Q8_0.gguf")
    ranks = _pooling(file) == _RANK
    ids = _pair_ids(file, texts) if ranks else ids_with_special_tokens(file.path, [*texts.queries, *texts.passages])
    progress.start("embeddings", len(subjects))
    records: list[dict[str, object]] = []
    first: Array | None = None
    for subject in subjects:
        values = _results(subject, ids, threads, ranks=ranks)
        if not np.isfinite(values).all():
            raise MeasureError(f"{subject.name} gives a value that is not finite; convert it again")
        reference = values if first is None else first
        if values.shape != reference.shape:
            raise MeasureError(
                f"{subject.name} gives {values.shape[1]} values for a text and {subjects[0].name} {reference.shape[1]};"
                " measure files of one model"
            )
        record: dict[str, object] = {"set": texts.name, "texts": len(ids), "width": values.shape[1]}
        if not ranks:
            record["recall"] = recall(values, len(texts.queries), texts.answers)
        if first is not None:
            record |= (
                score_figures(reference.ravel(), values.ravel())
                if ranks
                else embedding_figures(reference, values, len(texts.queries))
            )
        records.append(record)
        first = reference
        progress.advance(1, subject.name)
    return records


def _results(subject: Subject, ids: list[list[int]], threads: int, *, ranks: bool) -> Array:
    """One row for each sequence of ids: an embedding, or scores."""
    if isinstance(subject.engine, GgufEngine):
        if not subject.engine.header.is_encoder:
            raise UsageError(f"{subject.name} is not an encoder; pass files of one encoder")
        if _pooling(subject) in (None, 0):
            raise UsageError(
                f"{subject.name} does not state how to pool token vectors; convert a checkpoint that has modules.json"
            )
        rows = embeddings(subject.path, ids, n_threads=threads)
        return np.concatenate(rows).astype(np.float64)
    folder = subject.engine.folder
    dense = dense_modules(folder)
    kind = pooling_of(folder, dense=bool(dense))
    if ranks or kind is None:
        raise UsageError(
            f"{subject.name} has no pooling that quantkit runs; pass a GGUF of type f32 or f16 as the reference"
        )
    decoder = subject.engine.source.decoder
    vectors: Array = np.stack([_pooled(np.asarray(decoder.run(tokens), np.float64), kind) for tokens in ids])
    return np.asarray(through_dense(vectors.astype(np.float32), dense, decoder.weights), np.float64)


def _pooled(states: Array, kind: str) -> Array:
    """The embedding of a text from its hidden states (tokens, width)."""
    if kind == "mean":
        mean: Array = states.mean(axis=0)
        return mean
    one: Array = states[0 if kind == "cls" else -1]
    return one


def _pooling(subject: Subject) -> object:
    assert isinstance(subject.engine, GgufEngine)
    header = subject.engine.header
    return header.value(f"{header.value('general.architecture')}.pooling_type")


def _pair_ids(file: Subject, texts: Retrieval) -> list[list[int]]:
    """Ids of a query and a passage in one sequence, as llama.cpp's server joins them: its own passage, and others.

    A file with a prompt for reranking has both texts in it.
    """
    assert isinstance(file.engine, GgufEngine)
    prompt = file.engine.header.value("tokenizer.chat_template.rerank")
    if prompt is not None:
        filled = [
            str(prompt).replace("{query}", texts.queries[query]).replace("{document}", texts.passages[passage])
            for query, passage in _pairs(texts)
        ]
        return ids_with_special_tokens(file.path, filled)
    whole = ids_with_special_tokens(file.path, [*texts.queries, *texts.passages])
    count = len(texts.queries)
    return [[*whole[query], *whole[count + passage][1:]] for query, passage in _pairs(texts)]


def _pairs(texts: Retrieval) -> list[tuple[int, int]]:
    """Numbers of a query and a passage: each query with its own passage first, then with others."""
    return [
        (query, (passage + step * 7) % len(texts.passages))
        for query, passage in enumerate(texts.answers)
        for step in range(_PAIRS_A_QUERY)
    ]
