"""What Python 3.10 lacks: `tomllib`, `StrEnum`, `UTC`, `hashlib.file_digest`, the option -P."""

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


__all__ = ["UTC", "StrEnum", "file_sha256", "module_command", "tomllib"]

UTC = timezone.utc
_STEP = 1 << 20


def file_sha256(file: BinaryIO) -> str:
    """The sha256, in hexadecimal digits, of what `file` still holds."""
    digest = hashlib.sha256()
    while chunk := file.read(_STEP):
        digest.update(chunk)
    return digest.hexdigest()


def module_command(name: str) -> list[str]:
    """The command that runs a module as a program, and never imports from the current folder (-P)."""
    if tuple(sys.version_info) >= (3, 11):
        return [sys.executable, "-P", "-m", name]
    run = f"runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", f"import sys; sys.path.pop(0); import runpy; {run}"]
