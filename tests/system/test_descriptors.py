"""Reads, writes, locks and space without the functions of Linux: the branches of Windows and macOS, run here."""

import errno
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from quantkit import files
from quantkit.errors import OutputError
from quantkit.journal import JournalFile
from quantkit.system import descriptors

DATA = bytes(range(256)) * 64


@pytest.fixture(params=["as here", "without pread and pwrite"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    if request.param != "as here":
        for name in ("pread", "preadv", "pwrite", "posix_fallocate", "fdatasync"):
            monkeypatch.delattr(os, name, raising=False)
    (tmp_path / "data").write_bytes(DATA)
    descriptor = os.open(tmp_path / "data", descriptors.CREATE)
    yield descriptor
    os.close(descriptor)


def test_a_read_gives_the_bytes_at_its_offset_and_leaves_the_position(opened: int) -> None:
    os.lseek(opened, 7, os.SEEK_SET)
    assert descriptors.read_at(opened, 10, 300) == DATA[300:310]
    buffer = bytearray(8)
    assert descriptors.read_into(opened, memoryview(buffer), 17) == 8
    assert bytes(buffer) == DATA[17:25]
    assert os.lseek(opened, 0, os.SEEK_CUR) == 7


def test_a_read_at_the_end_is_short_and_behind_it_empty(opened: int) -> None:
    assert descriptors.read_at(opened, 10, len(DATA) - 3) == DATA[-3:]
    buffer = bytearray(8)
    assert descriptors.read_into(opened, memoryview(buffer), len(DATA)) == 0
    assert bytes(buffer) == bytes(8)


def test_threads_that_read_and_write_at_once_do_not_disturb_each_other(opened: int) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        own = bytes([number]) * 64
        for turn in range(60):
            descriptors.write_at(opened, own, len(DATA) + 64 * number)
            place = (number * 997 + turn * 131) % (len(DATA) - 64)
            if descriptors.read_at(opened, 64, place) != DATA[place : place + 64]:
                wrong.append(place)
            if descriptors.read_at(opened, 64, len(DATA) + 64 * number) != own:
                wrong.append(-number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_reserved_space_is_on_the_disk_and_keeps_what_the_file_holds(opened: int) -> None:
    size = (1 << 20) + 4099
    descriptors.reserve(opened, size)
    status = os.fstat(opened)
    assert status.st_size == size
    assert descriptors.disk_bytes(status) >= size
    assert descriptors.read_at(opened, len(DATA), 0) == DATA
    assert descriptors.read_at(opened, 16, size - 16) == bytes(16)
    descriptors.reserve(opened, 10)
    assert os.fstat(opened).st_size == size
    descriptors.flush(opened)


def test_a_short_write_is_continued(opened: int, monkeypatch: pytest.MonkeyPatch) -> None:
    some = descriptors._write_some
    monkeypatch.setattr(descriptors, "_write_some", lambda file, view, offset: some(file, view[:5], offset))
    descriptors.write_at(opened, b"0123456789abc", 3)
    assert descriptors.read_at(opened, 15, 2) == DATA[2:3] + b"0123456789abc" + DATA[16:17]


class Locking(ModuleType):
    """msvcrt as Windows documents it: locks bytes from the file's position on, fails at once when they are locked."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        super().__init__("msvcrt")
        self.locked: dict[tuple[int, int], int] = {}

    def locking(self, descriptor: int, mode: int, count: int) -> None:
        assert (mode, count) == (self.LK_NBLCK, 1)
        place = (os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR))
        assert place[1] < 1 << 31, "_locking has offsets of 32 bits"
        if self.locked.get(place, descriptor) != descriptor:
            raise PermissionError(errno.EACCES, "Permission denied")
        self.locked[place] = descriptor


@pytest.fixture
def windows_locks(monkeypatch: pytest.MonkeyPatch) -> Locking:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    locks = Locking()
    monkeypatch.setitem(sys.modules, "msvcrt", locks)
    return locks


def test_a_journal_is_locked_by_a_byte_behind_its_end_where_flock_is_missing(
    windows_locks: Locking, tmp_path: Path
) -> None:
    first = JournalFile(tmp_path / "journal", "busy")
    first.start({"format": "x"})
    with pytest.raises(OutputError, match="busy"):
        JournalFile(tmp_path / "journal", "busy")
    first.append({"step": 1})
    assert all(place > 1 << 30 for _, place in windows_locks.locked)
    first.close()
    windows_locks.locked.clear()
    again = JournalFile(tmp_path / "journal", "busy")
    assert again.lines == [{"step": 1}]
    again.close()


def test_a_file_system_without_locks_is_used_without(monkeypatch: pytest.MonkeyPatch, opened: int) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", None)
    assert descriptors.lock(opened) is False


def test_a_link_is_refused_without_o_nofollow_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "NO_FOLLOW", 0)
    monkeypatch.setattr(descriptors, "CREATE", descriptors.CREATE & ~os.O_NOFOLLOW)
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "m.partial").symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match=r"m\.partial is a link.*remove the link"):
        files.open_partial(tmp_path / "m.partial", keep=False)
    assert (tmp_path / "precious").read_text() == "precious"


def test_windows_flushes_files_open_for_writing_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags: list[int] = []
    really_open = os.open
    monkeypatch.setattr(os, "open", lambda path, how: flags.append(how) or really_open(path, how))
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(descriptors.os, "name", "nt")
    descriptors.flush_path(str(tmp_path))
    descriptors.flush_path(str(tmp_path / "file"))
    monkeypatch.undo()
    assert [how & os.O_RDWR for how in flags] == [os.O_RDWR]


def test_permission_bits_are_set_by_name_where_fchmod_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "fchmod")
    files.write_atomically(tmp_path / "script", "#!/bin/sh\n", mode=0o755)
    assert (tmp_path / "script").stat().st_mode & 0o777 == 0o755


def test_a_file_of_another_user_or_writable_by_others_is_not_private(tmp_path: Path) -> None:
    path = tmp_path / "library.so"
    path.write_text("")
    path.chmod(0o644)
    assert descriptors.belongs_to_user_alone(path.stat())
    path.chmod(0o664)
    assert not descriptors.belongs_to_user_alone(path.stat())
    stranger = os.stat_result((0o100644, 1, 1, 1, os.geteuid() + 1, 0, 0, 0, 0, 0))
    assert not descriptors.belongs_to_user_alone(stranger)
