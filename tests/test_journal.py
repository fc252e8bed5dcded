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


@pytest.mark.parametrize("zeros", [1, 4096])
def test_zeros_at_the_end_are_lines_that_were_not_written(tmp_path: Path, zeros: int) -> None:
    """A power cut can leave a file with its new length and without its new bytes."""
    data = written(tmp_path / "journal")
    lines = data.splitlines(keepends=True)
    for kept in range(len(lines) + 1):
        (tmp_path / "journal").write_bytes(b"".join(lines[:kept]) + bytes(zeros))
        file = JournalFile(tmp_path / "journal", "busy")
        assert [*filter(None, [file.head]), *file.lines] == [HEAD, *LINES][:kept]
        if kept:
            file.append(LINES[-1])
        else:
            file.start(HEAD)
        file.close()
        again = JournalFile(tmp_path / "journal", "busy")
        assert len(again.lines) == kept
        again.close()


def unfinished(path: Path) -> bytes:
    journal = Journal(path, "plan", ["out.gguf.partial"], force=False)
    for number in range(4):
        journal.finished(f"blk.{number}", {"error": 0.5})
    journal.close()
    return path.read_bytes()


@pytest.mark.parametrize("outlasts", [False, True])
def test_lines_that_a_restart_of_the_machine_lost_are_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outlasts: bool
) -> None:
    path = tmp_path / "journal"
    data = unfinished(path)
    at = data.index(b"blk.2")
    path.write_bytes(data[: at - 5] + bytes(20) + data[at + 15 :])
    monkeypatch.setattr("quantkit.system.processor.boot", lambda: "another start")
    journal = Journal(path, "plan", [], force=False, outlasts_restart=outlasts)
    assert journal.resumed
    assert journal.done == ({"blk.0", "blk.1"} if outlasts else set())
    journal.finished("blk.9")
    journal.close()
    again = Journal(path, "plan", [], force=False, outlasts_restart=outlasts)
    assert again.done == ({"blk.0", "blk.1", "blk.9"} if outlasts else {"blk.9"})
    again.close()


def test_after_a_restart_a_damaged_journal_of_another_run_is_not_discarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    path.write_bytes(unfinished(path).replace(b"blk.2", b"blk.7"))
    monkeypatch.setattr("quantkit.system.processor.boot", lambda: "another start")
    with pytest.raises(OutputError, match="holds an unfinished run of another source"):
        Journal(path, "another plan", [], force=False)


@pytest.mark.parametrize(
    ("former", "now", "which"),
    [
        ({"--samples": "8"}, {"--samples": "128"}, "with --samples 8 (now 128)"),
        (
            {"--type": "q4_0", "--pre": None, "another text": "a"},
            {"--type": "q8_0", "--pre": "qwen2", "another text": "b"},
            "with --type q4_0 (now q8_0) and --pre not given (now qwen2)",
        ),
        ({"another text": "a"}, {"another text": "b"}, "with another text"),
        ({"gptq:--sym": "--sym"}, {"gptq:--sym": "--asym"}, "with --sym (now --asym)"),
        ({"--skip": "x" * 41}, {"--skip": "y"}, "with another value of --skip"),
        (
            {"--type": "awq, gptq", "awq:--bits": "3", "gptq:--bits": "3"},
            {"--type": "awq, gptq", "awq:--bits": "4", "gptq:--bits": "4"},
            "with --bits 3 (now 4)",
        ),
        # an option of a type that only one of the runs has
        ({"--type": "awq", "awq:--bits": "3"}, {"--type": "q4_0"}, "with --type awq (now q4_0)"),
        # a journal of an older quantkit
        (None, {"--type": "q4_0"}, "of another source or of other options"),
    ],
)
def test_another_run_is_refused_with_the_options_that_differ(
    former: dict[str, str | None] | None, now: dict[str, str | None], which: str, tmp_path: Path
) -> None:
    Journal(tmp_path / "journal", "plan", [], force=False, settings=former).close()
    with pytest.raises(OutputError) as error:
        Journal(tmp_path / "journal", "other", [], force=False, settings=now)
    assert str(error.value) == (
        f"{tmp_path} holds an unfinished run {which}; finish it with the former command, or add --force to discard it"
    )
