"""What Python 3.10 lacks of 3.11's standard library: `tomllib`, `StrEnum`, `UTC`, `file_digest`."""

import hashlib
import sys
from datetime import timezone
from enum import Enum
from typing import BinaryIO

if sys.version_info >= (3, 11):
    from enum import StrEnum

    import tomllib
else:
    import tomli as tomllib

    class StrEnum(str, Enum):
        """An enumeration whose members are strings and print as their values."""

        __str__ = str.__str__


__all__ = ["UTC", "StrEnum", "file_sha256", "tomllib"]

UTC = timezone.utc
_STEP = 1 << 20


def file_sha256(file: BinaryIO) -> str:
    """The sha256, in hexadecimal digits, of what `file` still holds."""
    digest = hashlib.sha256()
    while chunk := file.read(_STEP):
        digest.update(chunk)
    return digest.hexdigest()
