"""`measure` of models that see: do the candidates answer questions about pictures as the reference does?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import MeasureError, MissingExtraError, UsageError
from quantkit.gguf.projector_file import choose_projector, doubt_of, named_projectors, only_hears
from quantkit.gguf.reader import read_header
from quantkit.llamacpp.conversation import Conversation, Loading, converse
from quantkit.llamacpp.projector_session import require_libmtmd
from quantkit.measurement.pictures import PICTURES, write_png
from quantkit.measurement.subjects import Subject
from quantkit.progress import Progress
from quantkit.scratch import folder_in_memory, scratch_folder

NONE = "none"
MOST = 16
"""Tokens of an answer at most."""
_SET = "quantkit's pictures"
_F32 = 4

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Followed:
    """An answer of the reference, and a model's logits before each of its tokens, (n_tokens, n_vocab)."""

    tokens: list[int]
    logits: Logits


def projectors_of(
    subjects: Sequence[Subject], projector: str | None, warn: Callable[[str], object] = lambda text: None
) -> list[Path] | None:
    """The projector of each model; None if the answers are not measured.

    `projector`: a projector for all models, or `none`. By default each model has the projector beside it with its
    name, or else that of the reference.

    Raises:
        UsageError: the projector belongs to another model, or `projector` is of no use.
        CheckpointError: the projector is damaged.
        MissingExtraError: `projector` without libmtmd.
    """
    if projector == NONE:
        return None
    reference = subjects[0]
    beside = [_projectors_beside(subject) for subject in subjects]
    if reference.kind != "gguf" or any(subject.kind != "gguf" for subject in subjects):
        if projector is not None:
            raise UsageError("--mmproj compares answers of GGUF files; pass GGUF files only, or leave --mmproj out")
        if any(beside):
            warn(
                "answers about pictures are compared between GGUF files only; pass a GGUF as REFERENCE to measure them"
            )
        return None
    if projector is None and not beside[0]:
        return None
    try:
        require_libmtmd()
    except MissingExtraError as error:
        if projector is not None:
            raise
        warn(f"answers about pictures are not measured: {error}")
        return None
    first = Path(projector) if projector is not None else beside[0][0]
    projectors = [
        choose_projector(subject.path, first if projector is not None or not files else files[0])
        for subject, files in zip(subjects, beside, strict=True)
    ]
    if doubt := doubt_of(reference.path, projectors[0]):
        warn(doubt)
    return projectors


def _projectors_beside(subject: Subject) -> list[Path]:
    if subject.kind != "gguf":
        return []
    return [path for path in named_projectors(subject.path) if not only_hears(read_header(path))]


def answer_records(
    subjects: Sequence[Subject], projectors: Sequence[Path], threads: int, progress: Progress
) -> list[dict[str, Any]]:
    """The figures of each model, of which the first is the reference, as `pictures` of report.json.

    The reference answers each question greedily. The other models get its answers token by token.

    Raises:
        MeasureError: a logit is not finite.
        MissingExtraError, QuantkitError: see `Conversation.open`.
    """
    progress.start("answers about pictures", len(subjects) * len(PICTURES))
    size = len(PICTURES) * (MOST + 1) * subjects[0].engine.n_vocab * _F32
    records: list[dict[str, Any]] = []
    with scratch_folder(folder_in_memory(2 * size)) as folder:
        images = [folder / f"{number}.png" for number in range(len(PICTURES))]
        for path, picture in zip(images, PICTURES, strict=True):
            write_png(path, picture.draw())
        reference: list[Followed] | None = None
        for subject, projector in zip(subjects, projectors, strict=True):
            followed = _follow_all(subject, projector, images, reference, threads, progress)
            record: dict[str, Any] = {
                "set": _SET,
                "pictures": len(PICTURES),
                "tokens": sum(len(one.tokens) for one in followed),
                "projector": projector.name,
                "projector_bytes": projector.stat().st_size,
            }
            if reference is not None:
                record |= figures(reference, followed)
            records.append(record)
            reference = reference or followed
    return records


def figures(reference: Sequence[Followed], candidate: Sequence[Followed]) -> dict[str, Any]:
    """Agreement over all tokens of the answers.

    Returns `same_answers`, the answers of which all tokens are the candidate's most likely ones. `top1` is the share of
    such tokens, and `kl` the mean KL divergence from the reference, in nats a token.
    """
    agree = [one.logits.argmax(axis=1) == np.array(one.tokens) for one in candidate]
    divergences = []
    for followed, other in zip(candidate, reference, strict=True):
        p, q = (_log_softmax(one.logits) for one in (other, followed))
        divergences.append((np.exp(p) * (p - q)).sum(axis=1))
    return {
        "same_answers": sum(bool(tokens.all()) for tokens in agree),
        "top1": round(float(np.concatenate(agree).mean()), 6),
        "kl": round(float(np.concatenate(divergences).mean()), 8),
    }


def _follow_all(
    subject: Subject,
    projector: Path,
    images: Sequence[Path],
    reference: Sequence[Followed] | None,
    threads: int,
    progress: Progress,
) -> list[Followed]:
    followed = []
    with converse(subject.path, n_ctx=None, system=None, raw=False, sampling={}) as talk:
        talk.show(images[:1], projector)
        talk.open(Loading(n_threads=threads))
        for number, (image, picture) in enumerate(zip(images, PICTURES, strict=True)):
            talk.images = (image,)
            answer = reference[number].tokens if reference else None
            followed.append(_follow(talk, subject, picture.question, answer))
            progress.advance(1, subject.name)
    return followed


def _follow(talk: Conversation, subject: Subject, question: str, answer: Sequence[int] | None) -> Followed:
    tokens, out = [], talk.images[0].with_suffix(".logits")
    try:
        tokens = talk.follow(question, out, answer=answer, most=MOST)
        logits = np.fromfile(out, np.float32).reshape(len(tokens), subject.engine.n_vocab)
    finally:
        out.unlink(missing_ok=True)
    if not np.isfinite(logits).all():
        raise MeasureError(f"{subject.name} gives a logit that is not finite for a picture; convert it again")
    return Followed(tokens, logits)


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    values: NDArray[np.float64] = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return values
