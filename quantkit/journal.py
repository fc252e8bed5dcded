"""Journals: the finished steps of a long run, so that a kill costs one step.

A journal is a file of JSON lines. The first line names the format and the version. Every line carries a CRC-32 of
itself and of all lines before it. The check finds a damaged, missing or moved line before the journal is used. A power
cut may lose the last lines or leave zeros in their place; these count as not written.
"""

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from quantkit.errors import OutputError
from quantkit.files import cannot_write, open_partial
from quantkit.system import descriptors, processor
from quantkit.units import listed

FORMAT, VERSION = "quantkit-journal", 2
_CRC = "crc32"
_LONGEST_SHOWN = 40
Settings = Mapping[str, str | None]
"""What decides the bytes of a run, in the words of the command line: option -> value, None if it is not given.

"SCOPE:OPTION" counts only where both runs have it, as an option of GGUF types does. The value of "another WHAT" or
"other WHATS", a digest, is not shown.
"""


class DamagedJournal(Exception):
    """A journal is not as quantkit wrote it. The message names the place."""


class JournalFile:
    """An open, locked file of journal lines; `lines` are those after the head, `head` is None in a new file.

    The caller checks `head`. Then it calls `start` to write a new file, or `append` to continue this one.
    """

    def __init__(self, path: Path, busy: str, boot: str = "") -> None:
        """Open or create the file at `path`; nothing in it is changed yet.

        `boot`: the id of this start of the machine. If the head has another one, the lines from a damaged one on are
        left out: the machine may have lost them when it stopped.

        Raises:
            OutputError: it cannot be opened, or another process holds it, of which `busy` is the sentence.
            DamagedJournal: a line is not JSON, is not an object, or its checksum is wrong; the file stays as it is.
        """
        self.path = path
        self._file = _locked(path, busy)
        try:
            data = self._file.read()
            self._size = data.rstrip(b"\0").rfind(b"\n") + 1
            self._torn = self._size != len(data)
            read, self._crc, damage = _parsed(data[: self._size])
            if damage is not None:
                if not (read and boot and read[0].get("boot", boot) != boot):
                    raise damage
                self._size, self._torn = _length(data, len(read)), True
        except DamagedJournal:
            self._file.close()
            raise
        except OSError as error:
            self._file.close()
            raise OutputError(f"cannot read {path}: {error.strerror or error}; run the command again") from error
        self.head: Mapping[str, Any] | None = read[0] if read else None
        self.lines: Sequence[Mapping[str, Any]] = read[1:]

    def start(self, head: Mapping[str, Any], lines: Iterable[Mapping[str, Any]] = ()) -> None:
        """Empty the file, and write `head` and `lines`. Raises OutputError."""
        self._size, self._torn, self._crc = 0, True, 0
        for line in (head, *lines):
            self.append(line)

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line, of JSON, at the end. A last line that is incomplete is removed first. Raises OutputError."""
        text, crc = _encoded(line, self._crc)
        try:
            if self._torn:
                self._file.truncate(self._size)
            self._torn, written = True, 0
            while written < len(text):
                written += self._file.write(text[written:])
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._size, self._torn, self._crc = self._size + len(text), False, crc

    def sync(self) -> None:
        """Flush the file to the disk. Raises OutputError."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}; check the disk") from error

    def close(self) -> None:
        """Close the file, which unlocks it."""
        self._file.close()


class Journal:
    """The journal of a conversion or a measurement, open and locked; its steps are tensors and layers.

    Format `quantkit-journal`: the head holds the fingerprint of the plan and its settings; `{"finishing": {file:
    sha256}}` follows the steps once everything is written and checked. `records`: every finished step and what was
    recorded with it.
    `stale`: partial files of a run that was thrown away. `finishing`: sha256 by file, once only renaming is left.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: str,
        files: Sequence[str],
        *,
        force: bool,
        settings: Settings | None = None,
        outlasts_restart: bool = False,
    ) -> None:
        """Open or create the journal of the run that `fingerprint` identifies and that writes `files`.

        `settings`: what the fingerprint covers, to name what differs from another run.
        `outlasts_restart`: finished steps count after a restart of the machine too, because what they wrote is checked.

        Raises:
            OutputError: another process uses it. Without `force` also if it is damaged, or belongs to another source or
                to other options.
        """
        self.path = path
        self._head = {"format": FORMAT, "version": VERSION, "fingerprint": fingerprint, "files": list(files)}
        if settings is not None:
            self._head["settings"] = dict(settings)
        self.records: dict[str, Any] = {}
        self.stale: list[str] = []
        self.finishing: Mapping[str, str] | None = None
        self.resumed = False
        self._file = self._open(force=force)
        head = self._file.head
        if head is not None and (head.get("format"), head.get("version")) == (FORMAT, VERSION):
            self.resumed = head["fingerprint"] == fingerprint
            self.stale = [] if self.resumed else list(head["files"])
        if head is not None and not self.resumed and not force:
            self._file.close()
            changes = _changes(head["settings"], settings) if settings and "settings" in head else []
            which = f"with {listed(changes)}" if changes else "of another source or of other options"
            raise OutputError(
                f"{path.parent} holds an unfinished run {which}; finish it with the former command, or add --force to"
                " discard it"
            )
        if not self.resumed:
            self._start()
            return
        for line in self._file.lines:
            if "tensor" in line:
                self.records[line["tensor"]] = line.get("record")
            self.finishing = line.get("finishing", self.finishing)
        if head is not None and head["boot"] != processor.boot() and self.finishing is None and not outlasts_restart:
            # The machine has restarted since; data that had not reached the disk is lost, and it is unknown which.
            self.forget()

    @property
    def done(self) -> set[str]:
        """The finished steps."""
        return set(self.records)

    def forget(self, steps: Iterable[str] | None = None) -> None:
        """Drop finished steps, by default all of them: they are to be done again."""
        for step in list(self.records) if steps is None else steps:
            self.records.pop(step, None)
        self.finishing = None
        self._start()

    def finished(self, step: str, record: Any = None) -> None:
        """Record that a step is done and its bytes are in every output; a resumed run gets `record` (of JSON) back."""
        self._file.append(_line(step, record))
        self.records[step] = record

    def start_finishing(self, sha256: Mapping[str, str]) -> None:
        """Record that all outputs are complete and checked; only renaming is left."""
        self._file.append({"finishing": dict(sha256)})
        self.sync()

    def sync(self) -> None:
        """Flush the lines to the disk. Raises OutputError."""
        self._file.sync()

    def close(self) -> None:
        """Close the file, which unlocks it."""
        self._file.close()

    def _open(self, *, force: bool) -> JournalFile:
        busy = f"another quantkit is writing into {self.path.parent} right now; wait for it"
        try:
            return JournalFile(self.path, busy, processor.boot())
        except DamagedJournal as error:
            if not force:
                raise OutputError(
                    f"the journal of the unfinished run in {self.path.parent} is damaged ({error});"
                    " add --force to start over"
                ) from error
        self.path.unlink(missing_ok=True)
        return JournalFile(self.path, busy)

    def _start(self) -> None:
        lines = [_line(step, record) for step, record in self.records.items()]
        self._file.start({**self._head, "boot": processor.boot()}, lines)


def _changes(before: Settings, now: Settings) -> list[str]:
    """What differs between two runs; digests only if nothing else does. ["--samples 8 (now 128)"]"""
    shown, digests = [], []
    for key in dict.fromkeys((*before, *now)):
        scope, _, name = key.rpartition(":")
        old, new = before.get(key), now.get(key)
        if old == new or (scope and not (key in before and key in now)):
            continue
        if name.startswith(("another ", "other ")):
            digests.append(name)
        elif (old or "").startswith("--"):
            shown.append(f"{old} (now {new})")
        elif max(len(old or ""), len(new or "")) > _LONGEST_SHOWN:
            shown.append(f"another value of {name}")
        else:
            shown.append(f"{name} {old or 'not given'} (now {new or 'not given'})")
    return list(dict.fromkeys(shown or digests))


def _line(step: str, record: Any) -> dict[str, Any]:
    return {"tensor": step} if record is None else {"tensor": step, "record": record}


def _encoded(line: Mapping[str, Any], before: int) -> tuple[bytes, int]:
    """A line as it is written, and the checksum of all lines up to it; `before`: that of the lines before."""
    crc = zlib.crc32(_dumped(line), before)
    return _dumped({**line, _CRC: crc}) + b"\n", crc


def _dumped(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode()


def _parsed(data: bytes) -> tuple[list[dict[str, Any]], int, DamagedJournal | None]:
    """The lines before the first damaged one, their checksum, and the fault of the next line."""
    lines: list[dict[str, Any]] = []
    crc = 0
    for number, text in enumerate(data.split(b"\n")[:-1], 1):
        try:
            line = json.loads(text)
            expected = line.pop(_CRC)
            new = zlib.crc32(_dumped(line), crc)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return lines, crc, DamagedJournal(f"line {number} is not a line of a journal")
        if new != expected:
            return lines, crc, DamagedJournal(f"the checksum of line {number} is wrong")
        crc = new
        lines.append(line)
    return lines, crc, None


def _length(data: bytes, lines: int) -> int:
    """Bytes of the first lines of `data`."""
    return sum(len(text) + 1 for text in data.split(b"\n")[:lines])


def _locked(path: Path, busy: str) -> FileIO:
    """The file, opened and locked. A file that another process removed meanwhile is opened again."""
    while True:
        file = os.fdopen(open_partial(path, keep=True, append=True), "a+b", buffering=0)
        file.seek(0)
        try:
            if not descriptors.lock(file.fileno()):
                # the file system has no locks: continue without
                return file
        except BlockingIOError:
            file.close()
            raise OutputError(busy) from None
        try:
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        except FileNotFoundError:
            pass
        file.close()
