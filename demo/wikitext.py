"""WikiText-2's raw test split (CC BY-SA 3.0), the text of llama.cpp's perplexities, and its validation split."""

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path

from demo.inputs import CACHE, WIKITEXT2_PARQUET, InputsUnavailable, extract
from demo.parquet import read_strings

SHA256 = {
    "test": "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
    "validation": "4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7",
}


def wikitext2_test() -> str:
    """The text of wiki.test.raw, 1,290,590 bytes, downloaded once (5 MB). Raises InputsUnavailable."""
    return _file("test").read_text(encoding="utf-8")


def wikitext2_validation() -> Path:
    """A file of the text of wiki.valid.raw, 1,146,846 bytes, downloaded once (5 MB). Raises InputsUnavailable."""
    return _file("validation")


def _file(split: str) -> Path:
    path = CACHE / f"wikitext-2-raw-{split}.txt"
    if not path.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        member = str(Path(WIKITEXT2_PARQUET.member).with_name(f"{split}.parquet"))
        with tempfile.TemporaryDirectory(prefix="wikitext-", suffix=".partial", dir=CACHE) as scratch:
            rows = read_strings(extract(replace(WIKITEXT2_PARQUET, member=member), Path(scratch)).read_bytes())
            data = "".join(row or " \n" for row in rows).encode()  # the data set stores a blank line as nothing
            if hashlib.sha256(data).hexdigest() != SHA256[split]:
                raise InputsUnavailable(f"WikiText-2's {split} split does not have the pinned checksum")
            partial = Path(scratch) / path.name
            partial.write_bytes(data)
            partial.rename(path)
    return path
