"""Journals: what an earlier run finished is believed only from a file that is as quantkit wrote it."""

import errno
import json
import random
import zlib
from pathlib import Path

import pytest

from quantkit.errors import OutputError
from quantkit.journal import DamagedJournal, Journal, JournalFile
from tests.helpers.mutations import mutated

HEAD = {"format": "test", "version": 1}
LINES = [{"tensor": f"blk.{number}.é", "record": {"error": 0.1, "tokens": [1, number]}} for number in range(5)]


def written(path: Path) -> bytes:
    file = JournalFile(path, "busy")
    file.start(HEAD, LINES)
    file.close()
    return path.read_bytes()


def test_every_line_has_the_crc_of_all_lines_up_to_it(tmp_path: Path) -> None:
    crc = 0
    for text in written(tmp_path / "journal").splitlines():
        line, stated = text[:-1].rsplit(b',"crc32":', 1)
        crc = zlib.crc32(line + b"}", crc)
        assert int(stated) == crc


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    written(tmp_path / "journal")
    file = JournalFile(tmp_path / "journal", "busy")
    assert file.head == HEAD and list(file.lines) == LINES
    file.append({"tensor": "more"})
    file.close()
    again = JournalFile(tmp_path / "journal", "busy")
    assert list(again.lines) == [*LINES, {"tensor": "more"}]
    again.close()


@pytest.mark.parametrize("seed", range(8))
def test_a_mutated_journal_gives_lines_that_were_written_or_is_damaged(tmp_path: Path, seed: int) -> None:
    data, rng, damaged = written(tmp_path / "journal"), random.Random(seed), 0
    for _ in range(200):
        (tmp_path / "journal").write_bytes(changed := mutated(data, rng))
        try:
            file = JournalFile(tmp_path / "journal", "busy")
        except DamagedJournal:
            damaged += 1
            assert (tmp_path / "journal").read_bytes() == changed
            continue
        head, lines = file.head, list(file.lines)
        file.close()
        assert (head in (None, HEAD)) and lines == LINES[: len(lines)], f"seed {seed}"
    assert damaged > 100


@pytest.mark.parametrize("edit", ["removed", "repeated", "swapped"])
def test_a_line_that_is_not_in_its_place_is_damage(tmp_path: Path, edit: str) -> None:
    lines = written(tmp_path / "journal").splitlines(keepends=True)
    edited = {
        "removed": [*lines[:2], *lines[3:]],
        "repeated": [*lines[:3], *lines[2:]],
        "swapped": [*lines[:2], lines[3], lines[2], *lines[4:]],
    }[edit]
    (tmp_path / "journal").write_bytes(b"".join(edited))
    with pytest.raises(DamagedJournal, match="the checksum of line"):
        JournalFile(tmp_path / "journal", "busy")


def test_a_line_after_a_failed_write_replaces_the_torn_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = JournalFile(tmp_path / "journal", "busy")
    file.start(HEAD)

    class FullDisk:
        def __init__(self, under: object) -> None:
            self.under = under

        def write(self, data: bytes) -> int:
            self.under.write(data[:7])  # type: ignore[attr-defined]
            raise OSError(errno.ENOSPC, "No space left on device")

    under = file._file
    monkeypatch.setattr(file, "_file", FullDisk(under))
    with pytest.raises(OutputError, match="No space left on device; free some space"):
        file.append(LINES[0])
    monkeypatch.setattr(file, "_file", under)
    file.append(LINES[1])
    file.close()
    again = JournalFile(tmp_path / "journal", "busy")
    assert list(again.lines) == [LINES[1]]
    again.close()


def test_a_damaged_journal_is_refused_and_kept_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, "plan", ["out.gguf.partial"], force=False)
    journal.finished("blk.0", {"error": 0.5})
    journal.close()
    damaged = path.read_bytes().replace(b"0.5", b"0.6")
    path.write_bytes(damaged)
    with pytest.raises(OutputError, match=r"is damaged \(the checksum of line 2 is wrong\); add --force to start over"):
        Journal(path, "plan", [], force=False)
    assert path.read_bytes() == damaged
    forced = Journal(path, "plan", [], force=True)
    assert not forced.resumed and not forced.records
    forced.close()


def test_a_journal_of_another_version_is_another_run(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text('{"format":"quantkit-journal","version":1,"fingerprint":"plan","files":[]}\n')
    with pytest.raises(OutputError, match="--force"):
        Journal(tmp_path / "journal", "plan", [], force=False)
    assert json.loads((tmp_path / "journal").read_text())["version"] == 1
