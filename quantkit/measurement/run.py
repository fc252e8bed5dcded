"""`measure`: models against a reference on texts, resumable, as one document that a report is made of."""

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
from quantkit.measurement.subjects import Subject, check_vocabularies
from quantkit.measurement.summary import failures, quality_document
from quantkit.texts.evaluation import Text
from quantkit.texts.windows import Windows

_BEGUN = "begun"


def default_threads() -> int:
    """One for each core this process may use."""
    return cores()


@dataclass(frozen=True)
class Limits:
    """What a candidate may cost at most. `delta`: (of the perplexity, whether relative to the reference's)."""

    delta: tuple[float, bool] | None = None
    kl: float | None = None
    top1: float | None = None


@dataclass(frozen=True)
class Request:
    """How to measure. `n_chunks`: windows of each text at most. `work`: a folder for what a killed run goes on from."""

    work: Path
    n_ctx: int = 512
    n_chunks: int | None = None
    threads: int = field(default_factory=default_threads)
    limits: Limits = Limits()
    force: bool = False


@dataclass(frozen=True)
class Hooks:
    """Who is told. `prepared(name, done, of)`: a model takes all windows, by layers. `measured(done, of, text)`:
    windows done for all models, and what is known so far in words.
    """

    prepared: Callable[[str, int, int], object] = lambda name, done, of: None
    measured: Callable[[int, int, str], object] = lambda done, of, text: None
    warn: Callable[[str], object] = lambda text: None


def measure(
    reference: Subject, candidates: Sequence[Subject], texts: Sequence[Text], request: Request, hooks: Hooks
) -> dict[str, Any]:
    """Perplexity of every model on every text, and of the candidates what sets them apart from the reference.

    The document has `texts`, `models` (the reference first) with `quality`, `flags` (limits that are not kept),
    `machine`, `settings` and `seconds`. The caller removes `request.work` once it has stored it.

    Raises:
        MeasureError: a text is too short, vocabularies differ, logits are not finite.
        OutputError: the work folder belongs to another measurement (see `Request.force`), or cannot be written.
        QuantkitError: llama.cpp refuses a file.
    """
    begun = time.monotonic()
    subjects = [reference, *candidates]
    check_vocabularies(reference, candidates, hooks.warn)
    own = _with_own_names(texts)
    windows = [reference.windows(text, n_ctx=request.n_ctx, n_chunks=request.n_chunks) for text in own]
    with ExitStack() as stack:
        _begin(request, _fingerprint(subjects, windows), stack)
        comparison = Comparison(
            [subject.engine for subject in subjects],
            [subject.name for subject in subjects],
            windows,
            request.work,
            threads=request.threads,
        )
        _run(comparison, subjects, hooks)
        models = [_model(comparison, number, subjects, windows) for number in range(len(subjects))]
    for model, label in zip(models, _labels(subjects), strict=True):
        model["label"] = label
    return {
        "quantkit": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "settings": {"ctx": request.n_ctx, "chunks": request.n_chunks, "threads": request.threads},
        "texts": [_text(each) for each in windows],
        "models": models,
        "flags": _flags(models, request.limits),
        "seconds": round(time.monotonic() - begun, 3),
    }


def _with_own_names(texts: Sequence[Text]) -> list[Text]:
    """A report knows a text by its name alone: of several `test.txt` the second is `test.txt (2)`."""
    found: dict[str, Text] = {}
    for text in texts:
        name, number = text.name, 1
        while name in found:
            number += 1
            name = f"{text.name} ({number})"
        found[name] = replace(text, name=name)
    return list(found.values())


def _begin(request: Request, fingerprint: str, stack: ExitStack) -> None:
    """Lock the work folder; what lies there stays only if it is of the same measurement."""
    try:
        request.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {request.work}: {error.strerror or error}") from error
    journal = Journal(request.work / "journal", fingerprint, [], force=request.force)
    stack.callback(journal.close)
    if _BEGUN not in journal.done:
        for path in request.work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != journal.path:
                path.unlink()
        journal.finished(_BEGUN)


def _fingerprint(subjects: Sequence[Subject], windows: Sequence[Windows]) -> str:
    """Of all that the records depend on: the weights and the token ids."""
    digest = hashlib.sha256(__version__.encode())
    for subject in subjects:
        digest.update(subject.fingerprint.encode())
    for each in windows:
        digest.update(json.dumps(each.tokens.shape).encode())
        digest.update(each.tokens.tobytes() + each.targets.tobytes())
    return digest.hexdigest()


def _run(comparison: Comparison, subjects: Sequence[Subject], hooks: Hooks) -> None:
    done = 0

    def measured(count: int) -> None:
        nonlocal done
        done += count
        # the first few are named: a line has room for them
        so_far = ((subject.label, comparison.perplexity_so_far(number)) for number, subject in enumerate(subjects))
        known = [f"{label} {value:.4g}" for label, value in so_far if value == value][:4]
        hooks.measured(done, comparison.n_windows, " ".join(known))

    comparison.run(prepared=lambda number, step, of: hooks.prepared(subjects[number].name, step, of), measured=measured)


def _model(
    comparison: Comparison, number: int, subjects: Sequence[Subject], windows: Sequence[Windows]
) -> dict[str, Any]:
    subject = subjects[number]
    weights = subject.description.weights
    found: dict[str, Any] = {
        "name": subject.name,
        "label": subject.label,
        "role": "candidate" if number else "reference",
        "kind": subject.kind,
        "path": subject.path.name,
        "engine": _engine(subject.kind),
        "bytes": subject.engine.n_bytes,
    }
    if weights is not None:
        found |= {"parameters": weights.parameters, "bits_per_weight": round(weights.bits_per_weight, 4)}
    found["quality"] = [
        quality_document(text.name, comparison.records(number, place), comparison.records(0, place) if number else None)
        for place, text in enumerate(windows)
    ]
    return found


def _labels(subjects: Sequence[Subject]) -> list[str]:
    """The types; where two models have one, also what kind of file they are in."""
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


def _engine(kind: str) -> str:
    if kind != "gguf":
        return f"quantkit {__version__} forward"
    try:
        return f"llama.cpp (llama-cpp-python {version('llama-cpp-python')})"
    except PackageNotFoundError:
        return "llama.cpp"


def machine() -> dict[str, Any]:
    """What measured: processor, cores this process may use, bytes of memory."""
    return {
        "cpu": _processor(),
        "cores": default_threads(),
        "memory_bytes": memory_limit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.machine()
