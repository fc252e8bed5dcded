"""WikiText-2's raw test split (CC BY-SA 3.0), the text every llama.cpp perplexity is quoted on."""

import hashlib
import tempfile
from pathlib import Path

from demo.inputs import CACHE, WIKITEXT2_PARQUET, InputsUnavailable, extract
from demo.parquet import read_strings

SHA256 = "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"


def wikitext2_test() -> str:
    """The text of wiki.test.raw, 1,290,590 bytes, downloaded once (5 MB). Raises InputsUnavailable."""
    path = CACHE / "wikitext-2-raw-test.txt"
    if not path.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="wikitext-", suffix=".partial", dir=CACHE) as scratch:
            rows = read_strings(extract(WIKITEXT2_PARQUET, Path(scratch)).read_bytes())
            data = "".join(row or " \n" for row in rows).encode()  # the data set stores a blank line as nothing
            if hashlib.sha256(data).hexdigest() != SHA256:
                raise InputsUnavailable("the WikiText-2 test split does not have the checksum of wiki.test.raw")
            partial = Path(scratch) / path.name
            partial.write_bytes(data)
            partial.rename(path)
    return path.read_text(encoding="utf-8")
