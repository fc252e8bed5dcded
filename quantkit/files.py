"""Files and folders: partial names, atomic writes, free space, refusals. Every room writes through these."""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from quantkit.errors import OutputError, UsageError
from quantkit.system import descriptors
from quantkit.units import human_bytes

PARTIAL, FAILED = ".partial", ".failed"


def user_path(text: str) -> Path:
    """The path that a user writes; a leading `~` or `~USER` is a home folder. Raises UsageError if there is none."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(f"the home folder of {text} is not found; write the path without ~") from error


def path_is(path: Path, kind: Callable[[Path], bool] = Path.exists) -> bool:
    """Whether `path` exists as `kind` (Path.is_file, Path.is_dir); False for a name that no file can have."""
    try:
        return kind(path)
    except (OSError, ValueError):  # a name too long for the file system, or with a null byte
        return False


def partial_path(path: Path) -> Path:
    """The name of an unfinished file or folder, beside its final name."""
    return path.with_name(path.name + PARTIAL)


def failed_path(path: Path) -> Path:
    """The name of a file or folder that failed a check, beside its final name."""
    return path.with_name(path.name + FAILED)


def cannot_write(what: object, error: OSError) -> OutputError:
    """The error for a file or folder that cannot be written; the next step depends on the reason."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        step = "free some space and run the command again, or choose another folder with -o"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        step = "choose another folder with -o"
    else:
        step = "check the disk and run the command again"
    return OutputError(f"cannot write {what}: {error.strerror or error}; {step}")


def write_atomically(path: Path, data: bytes | str, *, mode: int | None = None) -> None:
    """Write `data` (text as UTF-8) under a partial name, flush it to the disk and rename it to `path`.

    `mode`: permission bits of the file, such as 0o755; None leaves those of a new file.

    Raises:
        OutputError: the file cannot be written; no partial file is left.
    """
    partial = partial_path(path)
    descriptor = open_partial(partial, keep=False)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            file.flush()
            if mode is not None:
                descriptors.set_mode(file.fileno(), partial, mode)
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def open_partial(path: Path, *, keep: bool, append: bool = False) -> int:
    """A descriptor to read and write the file `path`, which is created if need be; `keep` its content, or truncate it.

    With `append` every write goes to the end.

    Raises:
        OutputError: the file cannot be opened, or `path` is a link or not a regular file: writing would damage another
            file, and the link would become the final output.
    """
    try:
        if not descriptors.NO_FOLLOW and path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        descriptor = os.open(path, descriptors.CREATE | (os.O_APPEND if append else 0), 0o666)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OutputError(f"{path} is not a regular file; remove it")
            if not keep:
                os.ftruncate(descriptor, 0)
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        if path.is_symlink():
            raise OutputError(f"{path} is a link, and its target would be overwritten; remove the link") from error
        raise cannot_write(path, error) from error
    return descriptor


def refuse_misplaced(path: Path, option: str, *, is_folder: bool) -> None:
    """Raise UsageError where `option` names a folder (or else a file) of outputs that cannot be one.

    That is a folder whose path is a file, a file whose path is a folder, and both below a file.
    """
    if not is_folder and path_is(path, Path.is_dir):
        raise UsageError(f"{option} {path} is a folder; name a file in it, such as {path / 'NAME'}")
    nearest = next((folder for folder in (path, *path.parents) if path_is(folder)), None)
    if nearest is None or path_is(nearest, Path.is_dir) or (nearest == path and not is_folder):
        return
    where = "" if nearest == path else f": {nearest}"
    raise UsageError(f"{option} {path}{where} is a file, not a folder; choose another folder with {option}")


def make_partial_folder(folder: Path) -> None:
    """Create `folder` and its parents; refuse a link, whose target the work would change. Raises OutputError."""
    if folder.is_symlink():
        raise OutputError(f"{folder} is a link, and its target would be changed; remove the link")
    make_folder(folder)


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents. Raises OutputError when it cannot be created or is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot create {folder}: {error.strerror or error}; choose another folder with -o"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder} is not writable; choose another folder with -o")


def free_space(folder: Path) -> int:
    """Free bytes on the disk of `folder`, which need not exist yet."""
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(existing).free


def occupied(paths: Iterable[Path]) -> int:
    """Bytes on the disk that the existing files of `paths` take; of a folder, its files."""
    files = (file for path in paths for file in (path.iterdir() if path.is_dir() else (path,)))
    return sum(descriptors.disk_bytes(file.stat()) for file in files if file.is_file())


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content; nothing happens where `path` does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def require_space(folder: Path, needed: int, reusable: Iterable[Path] = ()) -> None:
    """Raise OutputError where the disk of `folder` has no room for `needed` bytes.

    `reusable`: partial files of a killed run, which are overwritten in place; their blocks count as free.
    """
    free = free_space(folder) + occupied(reusable)
    if needed > free:
        raise OutputError(
            f"{folder} has {human_bytes(free)} free but the outputs take {human_bytes(needed)};"
            " free some space, ask for fewer types or choose another folder with -o"
        )


def reserve(path: Path, size: int) -> None:
    """Create the file `path` of `size` bytes, all of them on the disk: a write to a map of it cannot end the process.

    Raises OutputError: the disk has less space.
    """
    descriptor = open_partial(path, keep=False)
    try:
        descriptors.reserve(descriptor, size)
    except OSError as error:
        os.close(descriptor)
        descriptor = -1
        path.unlink(missing_ok=True)
        raise cannot_write(f"{size / 1e6:.0f} MB to {path}", error) from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def refuse_existing(paths: Iterable[Path], *, force: bool) -> None:
    """Raise OutputError for the first of `paths` that exists, unless `force`."""
    existing = next((path for path in paths if path.exists()), None)
    if existing is not None and not force:
        raise OutputError(f"{existing} already exists; add --force to overwrite it")


def sync(path: Path) -> None:
    """Flush a file or folder to the disk; nothing happens where `path` does not exist."""
    if not path.exists():
        return
    descriptors.flush_path(path)
