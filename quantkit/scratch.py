"""Temporary folders outside the outputs (in /tmp or /dev/shm), removed at the end of their use and by a signal."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MEMORY = "/dev/shm"
_folders: set[str] = set()


def make_scratch(parent: str | None = None) -> Path:
    """A new empty folder in `parent`, by default the system's folder of temporary files. Raises OSError."""
    folder = tempfile.mkdtemp(prefix=f"quantkit-{os.getpid()}-", dir=parent)
    _folders.add(folder)
    return Path(folder)


def drop_scratch(folder: Path) -> None:
    """Remove a folder of `make_scratch` and all that is in it."""
    shutil.rmtree(folder, ignore_errors=True)
    _folders.discard(str(folder))


def drop_all_scratch() -> None:
    """Remove every folder that is still in use: the process ends at once."""
    for folder in list(_folders):
        drop_scratch(Path(folder))


@contextmanager
def scratch_folder(parent: str | None = None) -> Iterator[Path]:
    """A folder for the time of a `with` statement. Raises OSError."""
    folder = make_scratch(parent)
    try:
        yield folder
    finally:
        drop_scratch(folder)


def folder_in_memory(size: int) -> str | None:
    """A folder in memory with space for `size` bytes; None if there is none, and the disk is used."""
    if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > size:
        return _MEMORY
    return None
