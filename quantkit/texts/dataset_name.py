"""The name of a dataset of the hub, as the commands and recipes take it."""

import re
from dataclasses import dataclass

_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([^:]+))?(?::(.+))?", re.ASCII)
ENDINGS = (".parquet", ".jsonl", ".ndjson", ".json", ".txt", ".jsonl.gz", ".json.gz", ".txt.gz")
"""Endings of the names of text files."""


@dataclass(frozen=True)
class Dataset:
    """A request for a dataset: repository, revision (None: the default branch), and split (None: `train` or all)."""

    repo_id: str
    revision: str | None
    split: str | None


def parse_dataset(source: str) -> Dataset | None:
    """Parse `ORG/NAME[@REVISION][:SPLIT]`; None for a text that can only be a path."""
    match = _ID.fullmatch(source)
    if match is None or (match[3] is None and source.lower().endswith(ENDINGS)):
        return None
    return Dataset(match[1], match[2], match[3])
