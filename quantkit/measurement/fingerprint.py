"""What tells an unfinished measurement from another one."""

import hashlib
import json
from collections.abc import Sequence

from quantkit import __version__
from quantkit.journal import Settings
from quantkit.measurement.subjects import Subject
from quantkit.texts.windows import Windows


def measurement_fingerprint(subjects: Sequence[Subject], windows: Sequence[Windows]) -> str:
    """A digest of the weights and the token ids, on which the records depend."""
    digest = hashlib.sha256(__version__.encode())
    for subject in subjects:
        digest.update(subject.fingerprint.encode())
    for text in windows:
        digest.update(json.dumps(text.tokens.shape).encode())
        digest.update(text.tokens.tobytes() + text.targets.tobytes())
    return digest.hexdigest()


def measurement_settings(
    subjects: Sequence[Subject], windows: Sequence[Windows], *, n_ctx: int, n_chunks: int | None
) -> Settings:
    """What the fingerprint covers, in the words of the command line; see `Journal`."""
    reference, *candidates = (subject.name for subject in subjects)
    return {
        "the reference": reference,
        "the candidates": ", ".join(candidates) or None,
        "--text": ", ".join(text.name for text in windows),
        "--ctx": str(n_ctx),
        "--chunks": None if n_chunks is None else str(n_chunks),
        "quantkit": __version__,
        "other files of the models": "".join(subject.fingerprint for subject in subjects),
        "another text of --text": "".join(text.sha256 for text in windows),
    }
