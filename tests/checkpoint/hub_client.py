"""Opens one checkpoint and tells what came of it as JSON; as a script, of one in a process of its own."""

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from quantkit.checkpoint import Access, open_checkpoint
from quantkit.errors import QuantkitError


class Steps:
    """A Progress that records (file, bytes done, bytes in all)."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []
        self.done = self.total = 0

    def start(self, stage: str, total: int = 0) -> None:
        self.done, self.total = 0, total

    def advance(self, amount: int = 1, item: str = "") -> None:
        self.done += amount
        self.steps.append((item, self.done, self.total))


def opened(arguments: dict[str, Any]) -> dict[str, Any]:
    """What `open_checkpoint` gives of `source`, with the further arguments as its `Access`; and its progress."""
    access = Access(**{name: value for name, value in arguments.items() if name != "source"})
    progress = Steps()
    started = time.monotonic()
    result: dict[str, Any]
    try:
        with open_checkpoint(arguments["source"], access, progress=progress) as checkpoint:
            result = {
                "name": checkpoint.name,
                "repo_id": checkpoint.repo_id,
                "revision": checkpoint.revision,
                "files": sorted(path.name for path in Path(checkpoint.folder).iterdir()),
                "folder": str(checkpoint.folder),
                "tensors": {name: list(info.shape) for name, info in checkpoint.tensors.items()},
                "header_sha256": dict(checkpoint.header_sha256),
            }
            try:
                result["data"] = {
                    name: hashlib.sha256(checkpoint.read_rows(name, 0, info.n_rows).tobytes()).hexdigest()
                    for name, info in checkpoint.tensors.items()
                }
            except QuantkitError as error:
                result["reading"] = str(error)
    except QuantkitError as error:
        result = {"error": type(error).__name__, "hub": "HubError" in [k.__name__ for k in type(error).__mro__]}
        result["message"] = str(error)
    return {**result, "steps": [list(step) for step in progress.steps], "seconds": time.monotonic() - started}


if __name__ == "__main__":
    print(json.dumps(opened(json.loads(sys.argv[1]))))
