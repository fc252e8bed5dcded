"""The journal of a long run: its finished steps, so that a kill costs one step.

JSON lines, format `quantkit-journal` version 1: first the fingerprint of the plan, then a line for each finished step
(a tensor, a layer), then `{"finishing": {file: sha256}}` once everything is written and checked.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from quantkit.errors import OutputError
from quantkit.files import open_partial

FORMAT, VERSION = "quantkit-journal", 1


class Journal:
    """An open, locked journal.

    `done`: steps that an earlier run finished. `records`: every finished step and what was recorded with it. `stale`:
    partial files of a run that was thrown away. `finishing`: sha256 by file, once only renaming is left.
    """

    def __init__(self, path: Path, fingerprint: str, files: Sequence[str], *, force: bool) -> None:
        """Open or create the journal of the run that `fingerprint` identifies and that writes `files`.

        Raises:
            OutputError: another process holds it, or it belongs to another source or other options (unless `force`).
        """
        self.path = path
        self._head = {"format": FORMAT, "version": VERSION, "fingerprint": fingerprint, "files": list(files)}
        self.done: set[str] = set()
        self.records: dict[str, Any] = {}
        self.stale: list[str] = []
        self.finishing: Mapping[str, str] | None = None
        self._file = _locked(path)
        lines = self._load()
        self.resumed = bool(lines) and lines[0].get("fingerprint") == fingerprint
        if lines and not self.resumed and not force:
            self._file.close()
            raise OutputError(
                f"{path.parent} holds an unfinished run of another source or of other options ({path.name});"
                " finish it with the same command, or add --force to discard it"
            )
        if self.resumed:
            for line in lines[1:]:
                if "tensor" in line:
                    self.done.add(line["tensor"])
                    self.records[line["tensor"]] = line.get("record")
                self.finishing = line.get("finishing", self.finishing)
            if lines[0].get("boot") != _boot() and self.finishing is None:
                # The machine has restarted since; data that had not reached the disk is lost, and it is unknown which.
                self.forget()
        else:
            self.stale = [str(name) for name in lines[0].get("files", [])] if lines else []
            self._start()

    def forget(self, steps: Iterable[str] | None = None) -> None:
        """Drop finished steps, by default all of them: they are to be done again."""
        for step in list(self.records) if steps is None else steps:
            self.done.discard(step)
            self.records.pop(step, None)
        self.finishing = None
        self._start()

    def _start(self) -> None:
        self._file.truncate(0)
        self._append({**self._head, "boot": _boot()})
        for step, record in self.records.items():
            self._append(_line(step, record))

    def finished(self, step: str, record: Any = None) -> None:
        """Record that a step is done and its bytes are in every output; a resumed run gets `record` (of JSON) back."""
        self._append(_line(step, record))
        self.records[step] = record

    def start_finishing(self, sha256: Mapping[str, str]) -> None:
        """Record that all outputs are complete and checked; only renaming is left."""
        self._file.flush()
        self._append({"finishing": dict(sha256)})
        os.fsync(self._file.fileno())

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._file.close()

    def close(self) -> None:
        self._file.close()

    def _append(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        self._file.flush()

    def _load(self) -> list[dict[str, Any]]:
        try:
            lines = whole_lines(self._file)
        except ValueError:
            return [{}]
        if lines and (lines[0].get("format"), lines[0].get("version")) != (FORMAT, VERSION):
            return [{}]
        return lines


def _line(step: str, record: Any) -> dict[str, Any]:
    return {"tensor": step} if record is None else {"tensor": step, "record": record}


def whole_lines(file: BinaryIO) -> list[Any]:
    """The JSON lines of a journal. A last line that a kill cut short is removed from the file.

    Raises ValueError for a line that is not JSON.
    """
    file.seek(0)
    data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) != len(data):
        file.truncate(len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _locked(path: Path) -> BinaryIO:
    """The journal's file, opened and locked. A file that another process removed meanwhile is opened again."""
    while True:
        file = os.fdopen(open_partial(path, keep=True, append=True), "a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise OutputError(f"another quantkit is writing into {path.parent} right now; wait for it") from None
        except OSError:
            # the file system has no locks: continue without
            return file
        try:
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        except FileNotFoundError:
            pass
        file.close()


def _boot() -> str:
    """The id of this start of the machine (Linux), or an empty text."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
