"""The user's cache folder for code that quantkit runs: compiled kernels, llama.cpp's converter.

A file of it is used only if this user alone can have written it. The folder and the file belong to this user, are not
writable by others and are not links.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from quantkit.system import descriptors


def private_cache_folder() -> Path | None:
    """The user's cache folder, created if missing; None without a home folder or when others can write to it."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantkit"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if _is_private(folder.lstat(), stat.S_ISDIR) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: no HOME, and the user id has no entry in the password file
        pass
    return None


def read_private(path: Path) -> bytes:
    """The bytes of a private regular file. Raises OSError for a link, or a file that others own or can write."""
    descriptor = os.open(path, descriptors.READ | descriptors.NO_FOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        if not _is_private(os.fstat(descriptor), stat.S_ISREG):
            raise PermissionError(f"{path} is not private to this user")
        return file.read()


def _is_private(status: os.stat_result, is_kind: Callable[[int], bool]) -> bool:
    return is_kind(status.st_mode) and descriptors.belongs_to_user_alone(status)
