"""The journal of a bake: which units of work are finished, of what they were made, and which files they wrote.

File NAME.bake.journal beside the outputs, JSON lines, format `quantkit-bake` version 1: a head, then a line when a
unit is started and one when it is finished. A unit is a format, or another step.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.errors import OutputError
from quantkit.journal import whole_lines

FORMAT, VERSION = "quantkit-bake", 1

Stamps = dict[str, list[int] | None]
"""File -> [bytes, time of change in ns]; None where it is not there."""


def stamps(files: Iterable[Path], root: Path) -> Stamps:
    """What tells of each file whether it is still the same, by its path below `root`, or its whole path elsewhere."""
    found: Stamps = {}
    for file in files:
        name = str(file.relative_to(root) if file.is_relative_to(root) else file)
        try:
            stat = file.stat()
            found[name] = [stat.st_size, stat.st_mtime_ns]
        except OSError:
            found[name] = None
    return found


class BakeJournal:
    """An open, locked journal; the folder of `path` is what its files are relative to."""

    def __init__(self, path: Path) -> None:
        """Raises OutputError: another bake holds it, it cannot be written, or it is not a journal of a bake."""
        self.path, self.root = path, path.parent
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            raise OutputError(f"cannot write into {self.root}: {error.strerror or error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise OutputError(f"another bake is at work on {path.name} right now; wait for it") from None
        except OSError:
            pass  # a file system without locks
        self.last: dict[str, dict[str, Any]] = {}
        """Unit -> its latest line."""
        self.finished_last: dict[str, dict[str, Any]] = {}
        """Unit -> its latest line that says it was finished."""
        self._load()

    def current(self, unit: str, fingerprint: str) -> bool:
        """Whether the unit is finished, of the same inputs, and its files are as they were left."""
        line = self.last.get(unit)
        return (
            line is not None
            and line["state"] == "finished"
            and line["fingerprint"] == fingerprint
            and stamps((self.root / name for name in line["files"]), self.root) == line["files"]
        )

    def ours(self, unit: str, files: Sequence[Path]) -> bool:
        """Whether what stands under the names of `files` was made by this bake, or is not there."""
        line = self.last.get(unit)
        if line is None:
            return not any(file.exists() for file in files)
        if line["state"] == "started":
            return True
        now = stamps(files, self.root)
        return all(stamp is None or line["files"].get(name) == stamp for name, stamp in now.items())

    def complete(self, unit: str, fingerprint: str) -> bool:
        """Whether a unit that was started is in truth finished: all its files are there and none is what was there."""
        line = self.last.get(unit)
        if line is None or line["state"] != "started" or line["fingerprint"] != fingerprint:
            return False
        now = stamps((self.root / name for name in line["before"]), self.root)
        return all(stamp is not None and stamp != line["before"][name] for name, stamp in now.items())

    def start(self, unit: str, fingerprint: str, files: Sequence[Path]) -> None:
        """Note that the unit is under way. Taken up again, what stood there before the first start is kept in mind."""
        line = self.last.get(unit)
        if line is not None and line["state"] == "started" and line["fingerprint"] == fingerprint:
            return
        self._append({"unit": unit, "state": "started", "fingerprint": fingerprint,
                      "before": stamps(files, self.root)})  # fmt: skip

    def finish(self, unit: str, fingerprint: str, files: Sequence[Path], record: Mapping[str, Any]) -> None:
        """Note that the unit is done and wrote `files`; `record` is kept with it."""
        line = {"unit": unit, "state": "finished", "fingerprint": fingerprint, "files": stamps(files, self.root)}
        self._append(line | {"record": dict(record)})
        os.fsync(self._file.fileno())

    def record(self, unit: str) -> dict[str, Any]:
        """What was kept with the unit when it was last finished."""
        return dict(self.finished_last.get(unit, {}).get("record", {}))

    def close(self) -> None:
        self._file.close()

    def _append(self, line: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        self._keep(line)

    def _keep(self, line: dict[str, Any]) -> None:
        self.last[line["unit"]] = line
        if line["state"] == "finished":
            self.finished_last[line["unit"]] = line

    def _load(self) -> None:
        try:
            lines = whole_lines(self._file)
            if lines and (lines[0]["format"], lines[0]["version"]) != (FORMAT, VERSION):
                raise ValueError("another format")
            for line in lines[1:]:
                self._keep(line)
        except (ValueError, KeyError, TypeError) as error:
            self._file.close()
            raise OutputError(f"{self.path} is not a journal of a bake; move it away, then bake again") from error
        if not lines:
            head = {"format": FORMAT, "version": VERSION}
            self._file.write(json.dumps(head, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
