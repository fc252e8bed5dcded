"""quantkit.json: one entry for each output, and the file that keeps them.

Format `quantkit-origin` version 1: `outputs` maps the stem of an output's files, or the name of its folder, to its
entry. Several commands that write into one folder keep each other's entries.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.checkpoint.remote_code import remote_code
from quantkit.errors import CheckpointError
from quantkit.files import write_atomically
from quantkit.gguf.kernels import accelerated, library
from quantkit.inspection.record import FILE_NAME, FORMAT, VERSION, parse_record
from quantkit.machine import peak_memory
from quantkit.verify.check import Check


def code_facts(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The entry on the Python files that a written folder has and its configs name; {} without any.

    It has the sha256 of each file, and the other repositories that `auto_map` names.
    """
    code = remote_code(folder, config)
    if not code.files and not code.repositories:
        return {}
    files = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in code.files.items()}
    return {"remote_code": {"files": files, "repositories": list(code.repositories)}}


@dataclass(frozen=True)
class OutputRecord:
    """What every output records.

    Attributes:
        origin: the source, its revision, the sha256 of its headers.
        type: the type or format, for people.
        files: bytes and sha256 of each file, by name.
        checks: all checks of the output.
        seconds: wall time of each step of the run. `seconds_cover` lists the outputs of that run.
        error_method: what `errors` are; `errors` has one figure for each tensor or linear.
        facts: what only this kind of output has.
    """

    origin: Mapping[str, Any]
    type: str
    files: Mapping[str, tuple[int, str | None]]
    checks: Sequence[Check]
    seconds: Mapping[str, float]
    seconds_cover: Sequence[str]
    error_method: str
    errors: Mapping[str, float] = field(default_factory=dict)
    threads: int = 1
    warnings: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def entry(self) -> dict[str, Any]:
        """The JSON object, with the program, the time and the peak memory of this process."""
        return {
            "tool": {"name": "quantkit", "version": __version__, "kernels": str(library()), "c_kernels": accelerated()},
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "origin": dict(self.origin),
            "type": self.type,
            "files": {name: {"bytes": size, "sha256": digest} for name, (size, digest) in self.files.items()},
            "checks": [vars(check) for check in self.checks],
            "relative_error": {name: round(error, 6) for name, error in self.errors.items()},
            "relative_error_method": self.error_method,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "seconds_cover": list(self.seconds_cover),
            "peak_memory_bytes": peak_memory(),
            "threads": self.threads,
            "warnings": list(self.warnings),
            **self.facts,
        }


def record_outputs(folder: Path, outputs: Mapping[str, OutputRecord]) -> None:
    """Add entries to the folder's quantkit.json; they replace those of the same name. Raises OutputError."""
    record = _load(folder / FILE_NAME)
    record["outputs"].update({name: output.entry() for name, output in outputs.items()})
    write_atomically(folder / FILE_NAME, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _load(path: Path) -> dict[str, Any]:
    """The present record. A damaged one, or one of another version, is renamed to `.bak`; the plan warns about it."""
    if path.exists():
        try:
            return parse_record(path)
        except CheckpointError:
            path.replace(path.with_name(f"{FILE_NAME}.bak"))
    return {"format": FORMAT, "version": VERSION, "outputs": {}}
