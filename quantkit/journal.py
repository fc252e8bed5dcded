"""The journal of a pass: which tensors are wholly written, so that a kill costs one tensor.

File `NAME.journal.partial` beside the outputs, JSON lines, format `quantkit-journal` version 1: first the plan's
fingerprint, then a line a finished tensor, then `{"finishing": {file: sha256}}` once everything is written and checked.
"""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from quantkit.errors import OutputError

FORMAT, VERSION = "quantkit-journal", 1


class Journal:
    """An open, locked journal. `done` holds what an earlier run finished, `stale` files of a discarded run.

    A step is a tensor, or a layer where a layer is what is calibrated at once; `records` is what was noted of each.
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
                " finish it with the same command, or add --force to throw it away"
            )
        if self.resumed:
            for line in lines[1:]:
                if "tensor" in line:
                    self.done.add(line["tensor"])
                    self.records[line["tensor"]] = line.get("record")
                self.finishing = line.get("finishing", self.finishing)
            if lines[0].get("boot") != _boot() and self.finishing is None:
                # The machine has started anew since: what had not reached the disk is lost, and nobody knows what.
                self.forget()
        else:
            self.stale = [str(name) for name in lines[0].get("files", [])] if lines else []
            self._start()

    def forget(self) -> None:
        """Start over: nothing is done yet."""
        self.done.clear()
        self.records.clear()
        self.finishing = None
        self._start()

    def _start(self) -> None:
        self._file.truncate(0)
        self._append({**self._head, "boot": _boot()})

    def finished(self, tensor: str, record: Any = None) -> None:
        """Note that every byte of `tensor` stands in every output; `record` (of JSON) is kept for a resumed run."""
        self._append({"tensor": tensor} if record is None else {"tensor": tensor, "record": record})
        self.records[tensor] = record

    def start_finishing(self, sha256: Mapping[str, str]) -> None:
        """Record that all outputs are complete and checked: what is left is renaming them."""
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


def whole_lines(file: BinaryIO) -> list[Any]:
    """The JSON lines of a journal; a kill may tear the last one, which is cut off so that the next append starts clean.

    Raises ValueError for a line that is no JSON.
    """
    file.seek(0)
    data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) != len(data):
        file.truncate(len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _locked(path: Path) -> BinaryIO:
    """The journal's file, opened and locked; a file that another process removed meanwhile is opened again."""
    while True:
        try:
            file = path.open("a+b")
        except OSError as error:
            raise OutputError(f"cannot write into {path.parent}: {error.strerror or error}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise OutputError(f"another quantkit is writing into {path.parent} right now; wait for it") from None
        except OSError:
            # A file system without locks: going on unlocked beats not going on.
            return file
        try:
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        except FileNotFoundError:
            pass
        file.close()


def _boot() -> str:
    """What tells one start of this machine from the next (Linux), or nothing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
