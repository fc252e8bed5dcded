"""Calls on file descriptors: reads and writes at an offset, locks, reserved space, flushes, owners."""

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator

from quantkit.system import optional_module

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
"""A link at the name is refused. Windows lacks the flag; callers look for a link as well."""
READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""Flags of `os.open` for reading bytes, on every system; children do not inherit the descriptor."""
# O_NONBLOCK: a pipe at the name is refused, not waited for
CREATE = (
    os.O_RDWR
    | os.O_CREAT
    | NO_FOLLOW
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)
"""Flags of `os.open` for reading and writing bytes of a file that is created if it does not exist."""

REMOVES_OPEN_FILES = os.name != "nt"
"""Whether a file or folder can be removed or renamed while a descriptor of it is open."""
_LOCKED_BYTE = (1 << 31) - 2
"""Windows locks bytes, not files, and nobody can read a locked byte. No journal is that long."""
_ZEROS = 1 << 20
_position = threading.Lock()


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """At most `size` bytes from `offset` on, as os.pread; any number of threads may call. Raises OSError."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    with _moved(descriptor, offset):
        return os.read(descriptor, size)


def read_into(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` with bytes from `offset` on; returns how many were read, 0 at the end. Raises OSError."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], offset)
    data = read_at(descriptor, len(buffer), offset)
    buffer[: len(data)] = data
    return len(data)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`; any number of threads may call. Raises OSError."""
    view = memoryview(data).cast("B")
    while view:
        written = _write_some(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _write_some(descriptor: int, view: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, view, offset)
    with _moved(descriptor, offset):
        return os.write(descriptor, view)


@contextlib.contextmanager
def _moved(descriptor: int, offset: int) -> Iterator[None]:
    """The position of the descriptor is `offset` for a moment, and as before afterwards."""
    with _position:
        before = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, offset, os.SEEK_SET)
        try:
            yield
        finally:
            os.lseek(descriptor, before, os.SEEK_SET)


def reserve(descriptor: int, size: int) -> None:
    """Make the file at least `size` bytes long, all of them on the disk. Raises OSError when the disk is full.

    Without posix_fallocate (macOS, Windows) the missing bytes are written as zeros.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    position = os.fstat(descriptor).st_size
    zeros = memoryview(bytes(min(_ZEROS, max(size - position, 0))))
    while position < size:
        piece = zeros[: size - position]
        write_at(descriptor, piece, position)
        position += len(piece)


def flush(descriptor: int) -> None:
    """Flush the bytes of a file to the disk; its times may follow later. Raises OSError."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


def flush_path(path: str | os.PathLike[str]) -> None:
    """Flush a file or folder to the disk. Raises OSError.

    Windows flushes only files that are open for writing, and has no way to flush a folder.
    """
    if os.name == "nt":
        if stat.S_ISDIR(os.stat(path).st_mode):  # noqa: PTH116 - takes any path
            return
        flags = READ | os.O_RDWR
    else:
        flags = READ
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_mode(descriptor: int, path: str | os.PathLike[str], mode: int) -> None:
    """Set the permission bits of an open file. Raises OSError."""
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, mode)
    else:
        os.chmod(path, mode)  # noqa: PTH101 - takes any path


def lock(descriptor: int) -> bool:
    """Lock a file for this process until it is closed; False if the file system has no locks.

    Raises BlockingIOError when another process has locked it.
    """
    take = _flock() or _locking()
    if take is None:
        return False
    try:
        take(descriptor)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EDEADLK, getattr(errno, "EDEADLOCK", errno.EDEADLK)):
            raise BlockingIOError(error.errno, "the file is locked") from error
        return False
    return True


def _flock() -> Callable[[int], object] | None:
    """Linux and macOS: the whole file, advisory."""
    fcntl = optional_module("fcntl")
    return None if fcntl is None else lambda descriptor: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _locking() -> Callable[[int], object] | None:
    """Windows: one byte far behind the end, mandatory."""
    msvcrt = optional_module("msvcrt")
    if msvcrt is None:
        return None

    def take(descriptor: int) -> None:
        with _moved(descriptor, _LOCKED_BYTE):
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    return take


def disk_bytes(status: os.stat_result) -> int:
    """Bytes that a file takes on the disk; Windows gives only its length."""
    blocks = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else int(blocks) * 512


def belongs_to_user_alone(status: os.stat_result) -> bool:
    """Whether this user owns a file or folder and nobody else may write it; Windows profiles are private."""
    if not hasattr(os, "geteuid"):
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
