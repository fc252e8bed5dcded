"""Compare models with a reference on texts. The result is one document; a killed run resumes."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.files import make_folder
from quantkit.journal import Journal
from quantkit.llamacpp.session import llama_cpp_version
from quantkit.machine import cores, memory_limit
from quantkit.measurement.comparison import ComparedModel, Comparison
from quantkit.measurement.costs import Costs, measure_costs
from quantkit.measurement.document import SCHEMA
from quantkit.measurement.encoders import encoder_records
from quantkit.measurement.fingerprint import measurement_fingerprint, measurement_settings
from quantkit.measurement.subjects import Subject, check_context, check_vocabularies
from quantkit.measurement.summary import failures, quality_document
from quantkit.progress import SILENT, Progress
from quantkit.system import processor
from quantkit.texts.evaluation import Text
from quantkit.texts.windows import Windows

_BEGUN = "begun"


@dataclass(frozen=True)
class Limits:
    """Limits of a candidate's loss of quality; None for no limit.

    Attributes:
        delta: largest increase of the perplexity; (limit, whether it is a fraction of the reference's perplexity).
        kl: largest mean KL divergence, in nats per token.
        top1: least fraction of tokens whose most likely token is the reference's.
    """

    delta: tuple[float, bool] | None = None
    kl: float | None = None
    top1: float | None = None


@dataclass(frozen=True)
class MeasureOptions:
    """Options of `measure`.

    Attributes:
        output: folder of the report and of an unfinished measurement; None for `NAME-report` with the reference's name.
        n_ctx: tokens of a window.
        n_chunks: largest number of windows of a text; None for all.
        threads: threads of every model.
        limits: limits of the candidates' loss of quality.
        costs: memory and speed to measure besides quality; None for quality alone.
        device: "cpu", "cuda" or "auto"; the device that computes folders of weights.
        force: discard the unfinished measurement of other models or texts.
        offline: read only local files and the hub's cache.
        mmproj: a projector for all models, or `none`; None for the one beside each model that sees.
    """

    output: str | Path | None = None
    n_ctx: int = 512
    n_chunks: int | None = None
    threads: int = field(default_factory=cores)
    limits: Limits = Limits()
    costs: Costs | None = None
    device: str = "auto"
    force: bool = False
    offline: bool = False
    mmproj: str | None = None


def measure_subjects(
    subjects: Sequence[Subject],
    texts: Sequence[Text],
    options: MeasureOptions,
    work: Path,
    progress: Progress = SILENT,
    warn: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Measure every model on every text, and compare each candidate with the reference token by token.

    Args:
        subjects: the models; the first is the reference.
        work: folder of the unfinished measurement. The caller deletes it after it stores the document.
        warn: receives each warning.

    Returns:
        The report.json document (see measurement.document).

    Raises:
        MeasureError: a text is too short, vocabularies differ, or a logit is not finite.
        OutputError: the work folder belongs to another measurement, or is not writable.
        QuantkitError: llama.cpp rejects a file.
    """
    start = time.monotonic()
    reference = subjects[0]
    check_vocabularies(reference, subjects[1:], warn)
    check_context(reference, options.n_ctx, warn)
    windows = [
        reference.windows(text, n_ctx=options.n_ctx, n_chunks=options.n_chunks) for text in _with_unique_names(texts)
    ]
    with ExitStack() as stack:
        make_folder(work)
        journal = Journal(
            work / "journal",
            measurement_fingerprint(subjects, windows),
            [],
            force=options.force,
            settings=measurement_settings(subjects, windows, n_ctx=options.n_ctx, n_chunks=options.n_chunks),
            # The records have checksums, so those from before a restart of the machine count.
            outlasts_restart=True,
        )
        stack.callback(journal.close)
        _begin(work, journal)
        compared = [ComparedModel(subject.engine, subject.name, subject.label) for subject in subjects]
        comparison = Comparison(compared, windows, work, threads=options.threads)
        stack.callback(comparison.close)
        comparison.run(progress)
        models = [
            _model(comparison, number, label, subjects, windows) for number, label in enumerate(_labels(subjects))
        ]
    for sentence in _worse_than_guessing(models):
        warn(sentence)
    seconds = round(time.monotonic() - start, 3)
    models = _with_costs(models, subjects, options, progress, warn)
    return _document(models, [_text(text) for text in windows], _flags(models, options.limits), options, seconds)


def measure_encoders(
    subjects: Sequence[Subject],
    options: MeasureOptions,
    progress: Progress = SILENT,
    warn: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Compare the embeddings or the scores of encoders with those of the first one; see `measure_subjects`.

    Raises:
        MeasureError, UsageError, QuantkitError: see `encoder_records`.
    """
    start = time.monotonic()
    check_vocabularies(subjects[0], subjects[1:], warn)
    records = encoder_records(subjects, options.threads, progress)
    models = [
        {**_identity(subject, label, number), "quality": [], "embeddings": record}
        for number, (subject, label, record) in enumerate(zip(subjects, _labels(subjects), records, strict=True))
    ]
    seconds = round(time.monotonic() - start, 3)
    return _document(_with_costs(models, subjects, options, progress, warn), [], [], options, seconds)


def _with_costs(
    models: Sequence[dict[str, Any]],
    subjects: Sequence[Subject],
    options: MeasureOptions,
    progress: Progress,
    warn: Callable[[str], object],
) -> list[dict[str, Any]]:
    """The models with memory, speed and weight errors where they are measured."""
    if options.costs is None:
        return list(models)
    costs, notes = measure_costs(subjects, options.costs, progress)
    for note in notes:
        warn(note)
    return [model | cost for model, cost in zip(models, costs, strict=True)]


def _document(
    models: list[dict[str, Any]], texts: list[dict[str, Any]], flags: list[str], options: MeasureOptions, seconds: float
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "quantkit": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "settings": {"ctx": options.n_ctx, "chunks": options.n_chunks, "threads": options.threads},
        "texts": texts,
        "models": models,
        "flags": flags,
        "seconds": seconds,
    }


def _with_unique_names(texts: Sequence[Text]) -> list[Text]:
    """The texts with unique names, which identify them in a report: the second `test.txt` becomes `test.txt (2)`."""
    by_name: dict[str, Text] = {}
    for text in texts:
        name, number = text.name, 1
        while name in by_name:
            number += 1
            name = f"{text.name} ({number})"
        by_name[name] = replace(text, name=name)
    return list(by_name.values())


def _begin(work: Path, journal: Journal) -> None:
    """Empty the work folder unless it holds the same measurement."""
    if _BEGUN not in journal.done:
        for path in work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != journal.path:
                path.unlink()
        journal.finished(_BEGUN)
        journal.sync()


def _model(
    comparison: Comparison, number: int, label: str, subjects: Sequence[Subject], windows: Sequence[Windows]
) -> dict[str, Any]:
    document = _identity(subjects[number], label, number)
    document["quality"] = [
        quality_document(
            text.name, comparison.records(number, text_number), comparison.records(0, text_number) if number else None
        )
        for text_number, text in enumerate(windows)
    ]
    return document


def _identity(subject: Subject, label: str, number: int) -> dict[str, Any]:
    """What report.json states of a model besides its figures."""
    weights = subject.description.weights
    document: dict[str, Any] = {
        "name": subject.name,
        "label": label,
        "role": "candidate" if number else "reference",
        "kind": subject.kind,
        "path": subject.path.name,
        "engine": _engine(subject.kind),
        "bytes": subject.engine.n_bytes,
        "vocabulary": subject.engine.n_vocab,
    }
    if weights is not None:
        document |= {"parameters": weights.parameters, "bits_per_weight": round(weights.bits_per_weight, 4)}
    return document


def _labels(subjects: Sequence[Subject]) -> list[str]:
    """The types of the models; if two models have the same type, the kind of file follows."""
    labels = [subject.label for subject in subjects]
    return [
        label if labels.count(label) == 1 else f"{label} {subject.kind}"
        for label, subject in zip(labels, subjects, strict=True)
    ]


def _text(windows: Windows) -> dict[str, Any]:
    return {
        "name": windows.name,
        "sha256": windows.sha256,
        "tokens": windows.n_tokens,
        "chunks": len(windows.tokens),
        "scored_tokens": int(windows.targets.size),
    }


def _flags(models: Sequence[Mapping[str, Any]], limits: Limits) -> list[str]:
    """A sentence for each limit that a candidate exceeds on a text."""
    return [
        f"{model['name']}: on {quality['text']} {reason}"
        for model in models[1:]
        for quality in model["quality"]
        for reason in failures(quality, max_delta=limits.delta, max_kl=limits.kl, min_top1=limits.top1)
    ]


def _worse_than_guessing(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each text on which a model's perplexity exceeds the size of its vocabulary."""
    return [
        f"the perplexity of {model['label']} on {quality['text']} is {quality['perplexity']['value']:.4g}, above its"
        f" vocabulary of {model['vocabulary']} tokens: equal probabilities would score better; check that the weights"
        " are sound and that the model knows the text's language"
        for model in models
        for quality in model["quality"]
        if quality["perplexity"]["value"] > model["vocabulary"]
    ]


def _engine(kind: str) -> str:
    if kind != "gguf":
        return f"quantkit {__version__} forward"
    version = llama_cpp_version()
    return f"llama.cpp ({version})" if version else "llama.cpp"


def machine() -> dict[str, Any]:
    """This machine: processor, cores and bytes of memory that this process may use."""
    return {
        "cpu": processor.name(),
        "cores": cores(),
        "memory_bytes": memory_limit(),
    }
