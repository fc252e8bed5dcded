"""`measure` from paths and hub ids: open the models and the texts, measure, close."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.checkpoint.sources import Access, parse_source
from quantkit.errors import UsageError
from quantkit.families import open_model
from quantkit.files import user_path
from quantkit.forward.devices import find_device
from quantkit.measurement.answers import answer_records, projectors_of
from quantkit.measurement.document import Report
from quantkit.measurement.encoders import gives_embeddings
from quantkit.measurement.reading import read_report
from quantkit.measurement.run import Limits, MeasureOptions, measure_encoders, measure_subjects
from quantkit.measurement.subjects import Subject, checkpoint_subject, open_subjects
from quantkit.progress import SILENT, Progress
from quantkit.texts.evaluation import Text, load_text

WORK = "measure.partial"
"""The folder of an unfinished measurement, in the folder of the report."""


@dataclass(frozen=True)
class Measurement:
    """A finished measurement.

    Attributes:
        document: the report.json document (see measurement.document).
        folder: the folder of the report.
        files: the files of the report that are written.
    """

    document: dict[str, Any]
    folder: Path
    files: tuple[Path, ...] = ()

    @property
    def report(self) -> Report:
        """The document as typed values."""
        return read_report(self.document)

    @property
    def flags(self) -> list[str]:
        """A sentence for each limit that a candidate exceeds."""
        return list(self.document["flags"])


def measure(
    reference: str,
    candidates: Sequence[str],
    texts: Sequence[str],
    options: MeasureOptions,
    progress: Progress = SILENT,
    warn: Callable[[str], object] = lambda text: None,
) -> Measurement:
    """Open the models and texts, and compare each candidate with the reference on every text.

    The unfinished measurement is kept in `measure.partial` in the folder of the report; the caller deletes it after it
    stores the document.

    Args:
        reference: a GGUF file, a folder of weights, or a hub id; of a folder of GGUF files the first is the reference.
        candidates: the same; each GGUF file of a folder is a candidate.
        texts: text, jsonl, json or parquet files, or datasets of the hub (`ORG/NAME[:SPLIT]`).
        warn: receives each warning.

    Raises:
        UsageError: no text is given, limits without a candidate, an unknown device, or another model's projector.
        CheckpointError, HubError, UnsupportedError: a model is not found, damaged, or of an unknown family.
        MeasureError: a text is too short, vocabularies differ, or logits are not finite.
        OutputError: the folder holds another unfinished measurement, or is not writable.
    """
    encoders = gives_embeddings(user_path(next(iter(candidates), reference)))
    if encoders and (texts or options.limits != Limits()):
        raise UsageError(
            "an encoder gives embeddings, which are compared on texts of quantkit's own; leave out --text, --max-delta,"
            " --max-kl and --min-top1"
        )
    if not texts and not encoders:
        raise UsageError(
            "measuring needs a text that the models were not calibrated on; pass one with --text FILE, or a dataset of"
            " the hub with --text ORG/NAME:SPLIT"
        )
    if not candidates and options.limits != Limits():
        raise UsageError("--max-delta, --max-kl and --min-top1 apply to candidates; name one after the reference")
    with _open_all([reference, *candidates], options, progress) as subjects:
        for note in dict.fromkeys(note for subject in subjects for note in subject.notes):
            warn(note)
        folder = Path(options.output or f"{subjects[0].name}-report")
        if encoders:
            return Measurement(measure_encoders(subjects, options, progress, warn), folder)
        loaded = [_load_text(source, options, warn) for source in texts]
        projectors = projectors_of(subjects, options.mmproj, warn)
        document = measure_subjects(subjects, loaded, options, folder / WORK, progress, warn)
        if projectors is not None:
            records = answer_records(subjects, projectors, options.threads, progress)
            pairs = zip(document["models"], records, strict=True)
            document["models"] = [model | {"pictures": record} for model, record in pairs]
    return Measurement(document, folder)


def _load_text(source: str, options: MeasureOptions, warn: Callable[[str], object]) -> Text:
    text = load_text(source, offline=options.offline)
    for warning in text.warnings:
        warn(warning)
    return text


@contextmanager
def _open_all(sources: Sequence[str], options: MeasureOptions, progress: Progress) -> Iterator[list[Subject]]:
    """The models of `sources`, in that order; they are closed at the end."""
    subjects: list[Subject] = []
    device = find_device(options.device)
    try:
        for source in sources:
            path = user_path(source)
            if path.exists() or source.endswith(".gguf") or isinstance(parse_source(source), Path):
                subjects += open_subjects(path, threads=options.threads, device=device)
            else:
                checkpoint = open_model(source, Access(offline=options.offline), progress=progress)
                subjects.append(checkpoint_subject(checkpoint, threads=options.threads, device=device))
        yield subjects
    finally:
        for subject in subjects:
            subject.close()
