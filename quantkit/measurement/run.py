"""`measure`: compare models with a reference on texts; the result is one document, and a killed run resumes."""

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.errors import OutputError
from quantkit.journal import Journal
from quantkit.machine import cores, memory_limit
from quantkit.measurement.comparison import Comparison
from quantkit.measurement.costs import Costs, measure_costs
from quantkit.measurement.document import SCHEMA
from quantkit.measurement.subjects import Subject, check_vocabularies
from quantkit.measurement.summary import failures, quality_document
from quantkit.progress import SILENT, Progress
from quantkit.texts.evaluation import Text
from quantkit.texts.windows import Windows

_BEGUN = "begun"


@dataclass(frozen=True)
class Limits:
    """Limits of a candidate's loss of quality; None for no limit.

    delta: of the perplexity's increase, as (limit, whether it is a fraction of the reference's perplexity).
    kl: of the mean KL divergence, in nats a token.
    top1: least fraction of tokens whose most likely token is the reference's.
    """

    delta: tuple[float, bool] | None = None
    kl: float | None = None
    top1: float | None = None


@dataclass(frozen=True)
class MeasureOptions:
    """Options of `measure`.

    output: folder of the report, and of an unfinished measurement, which the next run resumes; None for `NAME-report`,
        where NAME is the reference's name.
    n_ctx: tokens of a window.
    n_chunks: windows of each text at most; None for all.
    costs: memory and speed to measure besides quality; None for quality alone.
    device: "cpu", "cuda" or "auto": where folders of weights compute.
    force: discard the unfinished measurement of other models or texts.
    offline: read only the hub's cache.
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


def measure_subjects(
    subjects: Sequence[Subject],
    texts: Sequence[Text],
    options: MeasureOptions,
    work: Path,
    progress: Progress = SILENT,
    warn: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Measure every model on every text, and compare each with the first, the reference, token by token.

    Returns the report.json document (see measurement.document): `texts`, `models` (the reference first), `flags`
    (limits that a candidate exceeds), `machine`, `settings` and `seconds`. `warn` receives each warning. The caller
    deletes `work`, the folder of the unfinished measurement, after it stores the document.

    Raises:
        MeasureError: a text is too short, vocabularies differ, logits are not finite.
        OutputError: the work folder belongs to another measurement, or cannot be written.
        QuantkitError: llama.cpp refuses a file.
    """
    start = time.monotonic()
    reference = subjects[0]
    check_vocabularies(reference, subjects[1:], warn)
    windows = [
        reference.windows(text, n_ctx=options.n_ctx, n_chunks=options.n_chunks) for text in _with_unique_names(texts)
    ]
    with ExitStack() as stack:
        _begin(work, _fingerprint(subjects, windows), stack, force=options.force)
        comparison = Comparison(
            [subject.engine for subject in subjects],
            [subject.name for subject in subjects],
            windows,
            work,
            threads=options.threads,
        )
        stack.callback(comparison.close)
        stages = _ComparisonStages(comparison, subjects, progress)
        comparison.run(prepared=stages.prepared, measured=stages.measured)
        models = [
            _model(comparison, number, label, subjects, windows) for number, label in enumerate(_labels(subjects))
        ]
    for sentence in _worse_than_guessing(models):
        warn(sentence)
    seconds = round(time.monotonic() - start, 3)
    if options.costs is not None:
        costs, notes = measure_costs(subjects, options.costs, progress)
        models = [model | cost for model, cost in zip(models, costs, strict=True)]
        for note in notes:
            warn(note)
    return {
        "schema": SCHEMA,
        "quantkit": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "settings": {"ctx": options.n_ctx, "chunks": options.n_chunks, "threads": options.threads},
        "texts": [_text(text) for text in windows],
        "models": models,
        "flags": _flags(models, options.limits),
        "seconds": seconds,
    }


def _with_unique_names(texts: Sequence[Text]) -> list[Text]:
    """A report identifies a text by its name: of several `test.txt` the second becomes `test.txt (2)`."""
    by_name: dict[str, Text] = {}
    for text in texts:
        name, number = text.name, 1
        while name in by_name:
            number += 1
            name = f"{text.name} ({number})"
        by_name[name] = replace(text, name=name)
    return list(by_name.values())


def _begin(work: Path, fingerprint: str, stack: ExitStack, *, force: bool) -> None:
    """Lock the work folder, and empty it unless it holds the same measurement."""
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {work}: {error.strerror or error}") from error
    # The records have checksums of their own, so that those before a restart of the machine count.
    journal = Journal(work / "journal", fingerprint, [], force=force, outlasts_restart=True)
    stack.callback(journal.close)
    if _BEGUN not in journal.done:
        for path in work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != journal.path:
                path.unlink()
        journal.finished(_BEGUN)
        journal.sync()


def _fingerprint(subjects: Sequence[Subject], windows: Sequence[Windows]) -> str:
    """A digest of all that the records depend on: the weights and the token ids."""
    digest = hashlib.sha256(__version__.encode())
    for subject in subjects:
        digest.update(subject.fingerprint.encode())
    for text in windows:
        digest.update(json.dumps(text.tokens.shape).encode())
        digest.update(text.tokens.tobytes() + text.targets.tobytes())
    return digest.hexdigest()


class _ComparisonStages:
    """Reports the steps of a Comparison: the layers of each folder of weights, then the windows."""

    def __init__(self, comparison: Comparison, subjects: Sequence[Subject], progress: Progress) -> None:
        self._comparison, self._subjects, self._progress = comparison, subjects, progress
        self._stage = ""
        self._layers = self._windows = 0

    def prepared(self, number: int, done: int, of: int) -> None:
        stage = f"layers of {self._subjects[number].name}"
        if stage != self._stage:
            self._stage, self._layers = stage, 0
            self._progress.start(stage, of)
        self._progress.advance(done - self._layers, f"{done} of {of}")
        self._layers = done

    def measured(self, count: int) -> None:
        before, self._windows = self._windows, self._windows + count
        if self._stage != "chunks":
            self._stage, before = "chunks", 0
            self._progress.start("chunks", self._comparison.n_windows)
        # A line has space for a few models.
        values = [
            (subject.label, self._comparison.perplexity_so_far(number)) for number, subject in enumerate(self._subjects)
        ]
        known = " ".join(f"{label} {value:.4g}" for label, value in [pair for pair in values if pair[1] == pair[1]][:4])
        self._progress.advance(self._windows - before, f"{self._windows} of {self._comparison.n_windows}: {known}")


def _model(
    comparison: Comparison, number: int, label: str, subjects: Sequence[Subject], windows: Sequence[Windows]
) -> dict[str, Any]:
    subject = subjects[number]
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
    document["quality"] = [
        quality_document(text.name, comparison.records(number, place), comparison.records(0, place) if number else None)
        for place, text in enumerate(windows)
    ]
    return document


def _labels(subjects: Sequence[Subject]) -> list[str]:
    """The types; where two models have the same type, the kind of file follows."""
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
    try:
        return f"llama.cpp (llama-cpp-python {version('llama-cpp-python')})"
    except PackageNotFoundError:
        return "llama.cpp"


def machine() -> dict[str, Any]:
    """The measuring machine: processor, cores and bytes of memory that this process may use."""
    return {
        "cpu": _processor(),
        "cores": cores(),
        "memory_bytes": memory_limit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.machine()
