"""Several calibration texts at once: how many samples each gives, and the order of their samples."""

from collections.abc import Sequence

from quantkit.errors import CalibrationError
from quantkit.files import path_is, user_path

HELD_OUT = 4
"""Every fourth sample is held out: the limits of error feedback are chosen on these."""
DEFAULT = "default"
"""The word for quantkit's own text; a file of this name is `./default`."""


def text_sources(text: str | Sequence[str] | None) -> tuple[str | None, ...]:
    """The sources of calibration texts, None for quantkit's own text, which is also that of no text.

    Raises CalibrationError when a text is listed twice.
    """
    given = [text] if isinstance(text, str) else list(text or [DEFAULT])
    sources = [None if source == DEFAULT else source for source in given]
    identities = [_identity(source) for source in sources]
    for number, source in enumerate(sources):
        if identities[number] in identities[:number]:
            raise CalibrationError(
                f"calibration text {source or DEFAULT!r} is listed twice; every text must be unique, and all get an"
                " equal share of the samples"
            )
    return tuple(sources)


def equal_shares(n_samples: int, n_texts: int) -> list[int]:
    """`n_samples` shared equally; the first texts get the remainder. Raises CalibrationError when a share is empty."""
    if n_texts > 1 and n_samples < n_texts:
        raise CalibrationError(
            f"cannot share {n_samples} calibration samples among {n_texts} texts; use at least {n_texts} samples"
        )
    least, more = divmod(n_samples, n_texts)
    return [least + (number < more) for number in range(n_texts)]


def interleaved(counts: Sequence[int]) -> list[int]:
    """The text of each sample, for texts with `counts` samples.

    The held-out samples (index % HELD_OUT == HELD_OUT - 1) hold each text in proportion, and so do the others.
    """
    n_samples = sum(counts)
    held_out = _dealt(counts, n_samples // HELD_OUT)
    left = [count - held_out.count(text) for text, count in enumerate(counts)]
    held, others = iter(held_out), iter(_dealt(left, sum(left)))
    return [next(held if index % HELD_OUT == HELD_OUT - 1 else others) for index in range(n_samples)]


def _dealt(counts: Sequence[int], n_positions: int) -> list[int]:
    """The texts of `n_positions` positions in turn, in proportion to `counts`; of equal counts it is a round robin."""
    total, order, due = sum(counts), [], [0] * len(counts)
    for _ in range(n_positions):
        due = [part + count for part, count in zip(due, counts, strict=True)]
        text = due.index(max(due))
        due[text] -= total
        order.append(text)
    return order


def _identity(source: str | None) -> str | None:
    path = None if source is None else user_path(source)
    return str(path.resolve()) if path is not None and path_is(path) else source
