"""Temporary folders outside the outputs (in /tmp or /dev/shm), removed at the end of their use and by a signal.

SIGKILL and a power cut leave them. The next command removes those in the folder where it makes its own: a process
locks its folders until it ends, so a folder without a lock is abandoned.
"""

import contextlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantkit.system import descriptors, processes

_MEMORY = "/dev/shm"
_NAME = re.compile(r"quantkit-(\d+)-\w+")
_folders: dict[str, int | None] = {}
"""The folders in use, and a locked descriptor of each; None where the system or the file system has no such locks."""
_tidied: set[str] = set()


def make_scratch(parent: str | None = None) -> Path:
    """A new empty folder in `parent`, by default the system's folder of temporary files. Raises OSError."""
    around = os.path.abspath(parent or tempfile.gettempdir())  # noqa: PTH100 - keeps links, as tempfile does
    folder = f"{around}{os.sep}quantkit-{os.getpid()}-{secrets.token_hex(8)}"
    # before it exists, as a signal can come at any moment
    _folders[folder] = None
    Path(folder).mkdir(mode=0o700)
    _folders[folder] = _locked(folder)
    if around not in _tidied:
        _tidied.add(around)
        _drop_abandoned(around)
    return Path(folder)


def drop_scratch(folder: Path) -> None:
    """Remove a folder of `make_scratch` and all that is in it."""
    shutil.rmtree(folder, ignore_errors=True)
    descriptor = _folders.pop(str(folder), None)
    if descriptor is not None:
        os.close(descriptor)


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


def _locked(folder: str) -> int | None:
    """A locked descriptor of a folder of this user alone; None if it is locked, or cannot be."""
    try:
        descriptor = os.open(folder, descriptors.READ | descriptors.NO_FOLLOW | getattr(os, "O_DIRECTORY", 0))
    except OSError:  # Windows opens no folders
        return None
    with contextlib.suppress(OSError):
        if descriptors.belongs_to_user_alone(os.fstat(descriptor)) and descriptors.lock(descriptor):
            return descriptor
    os.close(descriptor)
    return None


def _drop_abandoned(parent: str) -> None:
    """Remove the folders in `parent` whose process has ended without removing them.

    Its number says so, and the lock: a process in another container may use the same folder.
    """
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            name = _NAME.fullmatch(entry.name)
            if name is None or not processes.has_ended(int(name[1])):
                continue
            descriptor = _locked(entry.path)
            if descriptor is not None:
                shutil.rmtree(entry.path, ignore_errors=True)
                os.close(descriptor)
