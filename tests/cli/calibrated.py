"""What tests of calibrated conversions share: small options, and the hashes of what was written."""

import hashlib
from pathlib import Path

SMALL = ("--samples", "8", "--seq-len", "32", "--raw", "--group-size", "32")


def hashes(folder: Path) -> dict[str, str]:
    """Of every file below but the record, which has times in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "quantkit.json"
    }
