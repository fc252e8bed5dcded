"""The journal of a bake: which units of work are finished, from which inputs, and which files they wrote.

File NAME.bake.journal beside the outputs, format `quantkit-bake` (see `quantkit.journal`): a line when a unit starts
and a line when it is finished. A unit is a format, or another step.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.errors import OutputError
from quantkit.files import make_folder
from quantkit.journal import DamagedJournal, JournalFile

FORMAT, VERSION = "quantkit-bake", 2
_MOVE = "move it away, then bake again with --force"

Stamps = dict[str, list[int] | None]
"""File -> [bytes, time of change in ns]; None if the file does not exist."""


def stamps(files: Iterable[Path], root: Path) -> Stamps:
    """Size and time of change of each file, by its path below `root`, or by its whole path elsewhere."""
    by_name: Stamps = {}
    for file in files:
        name = str(file.relative_to(root) if file.is_relative_to(root) else file)
        try:
            stat = file.stat()
            by_name[name] = [stat.st_size, stat.st_mtime_ns]
        except OSError:
            by_name[name] = None
    return by_name


class BakeJournal:
    """An open, locked journal; its files are relative to the folder of `path`.

    `last`: the latest line of each unit. `finished_last`: the latest line of each unit that records its end.
    """

    def __init__(self, path: Path) -> None:
        """Raises OutputError: another bake has it open, it is not writable, or it is not a journal of a bake."""
        self.path, self.root = path, path.parent
        make_folder(self.root)
        try:
            self._file = JournalFile(path, f"another bake is writing {path.name}; wait until it ends")
        except DamagedJournal as error:
            raise OutputError(f"{path} is not a journal of a bake ({error}); {_MOVE}") from error
        self.last: dict[str, dict[str, Any]] = {}
        self.finished_last: dict[str, dict[str, Any]] = {}
        head = self._file.head
        if head is None:
            self._file.start({"format": FORMAT, "version": VERSION})
        elif (head.get("format"), head.get("version")) != (FORMAT, VERSION):
            self._file.close()
            raise OutputError(f"{path} is not a journal of a bake, version {VERSION}; {_MOVE}")
        for line in self._file.lines:
            self._remember(dict(line))

    def current(self, unit: str, fingerprint: str) -> bool:
        """Whether the unit is finished, its inputs are the same, and its files have not changed since."""
        line = self.last.get(unit)
        return (
            line is not None
            and line["state"] == "finished"
            and line["fingerprint"] == fingerprint
            and stamps((self.root / name for name in line["files"]), self.root) == line["files"]
        )

    def ours(self, unit: str, files: Sequence[Path]) -> bool:
        """Whether this bake wrote each of `files`, or the file does not exist."""
        line = self.last.get(unit)
        if line is None:
            return not any(file.exists() for file in files)
        if line["state"] == "started":
            return True
        now = stamps(files, self.root)
        return all(stamp is None or line["files"].get(name) == stamp for name, stamp in now.items())

    def complete(self, unit: str, fingerprint: str) -> bool:
        """Whether a started unit has written all its files: each exists and is not the file that was there before."""
        line = self.last.get(unit)
        if line is None or line["state"] != "started" or line["fingerprint"] != fingerprint:
            return False
        now = stamps((self.root / name for name in line["before"]), self.root)
        return all(stamp is not None and stamp != line["before"][name] for name, stamp in now.items())

    def start(self, unit: str, fingerprint: str, files: Sequence[Path]) -> None:
        """Record that the unit starts. A unit that starts again keeps the stamps from before its first start."""
        line = self.last.get(unit)
        if line is not None and line["state"] == "started" and line["fingerprint"] == fingerprint:
            return
        before = stamps(files, self.root)
        self._append({"unit": unit, "state": "started", "fingerprint": fingerprint, "before": before})
        # a power cut that lost this line would leave files that look like another bake's
        self._file.sync()

    def finish(self, unit: str, fingerprint: str, files: Sequence[Path], record: Mapping[str, Any]) -> None:
        """Record that the unit is finished and wrote `files`; `record`, of JSON, is kept with it.

        Raises OutputError: the journal is not writable, or it or one of `files` was removed meanwhile.
        """
        line = {"unit": unit, "state": "finished", "fingerprint": fingerprint, "files": stamps(files, self.root)}
        self._append(line | {"record": dict(record)})
        self._file.sync()
        # the journal too: an open file that was removed can still be written
        for path in (*files, self.path):
            if not path.exists():
                raise OutputError(f"{path} was removed during the bake; run the command again")

    def record(self, unit: str) -> dict[str, Any]:
        """The record of the unit's latest finish."""
        return dict(self.finished_last.get(unit, {}).get("record", {}))

    def close(self) -> None:
        """Close the file, which unlocks the journal."""
        self._file.close()

    def _append(self, line: dict[str, Any]) -> None:
        self._file.append(line)
        self._remember(line)

    def _remember(self, line: dict[str, Any]) -> None:
        self.last[line["unit"]] = line
        if line["state"] == "finished":
            self.finished_last[line["unit"]] = line
