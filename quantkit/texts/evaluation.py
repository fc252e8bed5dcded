"""Texts for evaluation (perplexity, KL divergence)."""

import hashlib
from dataclasses import dataclass

from quantkit.errors import MeasureError
from quantkit.texts.documents import characters, plain_text
from quantkit.texts.samples import load_documents


@dataclass(frozen=True)
class Text:
    """A text and its name in reports: the file name or the dataset id."""

    name: str
    text: str
    warnings: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """The sha256 of the text in UTF-8."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()


def load_text(source: str, *, offline: bool = False) -> Text:
    """Load a text file, or the joined documents of a `.jsonl`, `.json` or `.parquet` file or a hub dataset
    (`ORG/NAME[:SPLIT]`).

    Raises:
        MeasureError: the text is empty.
        CalibrationError, HubError, MissingExtraError: see `samples.load_documents`.
    """
    documents, name, warnings = load_documents(source, offline=offline)
    if len(documents) == 1 and isinstance(documents[0], str):
        text = documents[0]
    else:
        text = "".join(plain_text(document) for document in documents if characters(document))
    if not text.strip():
        raise MeasureError(f"the text {name} is empty; pass a text with words")
    return Text(name, text, warnings)
