"""Pushes one folder and tells what came of it as JSON; as a script, from a process of its own."""

import json
import sys
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError
from quantkit.publish.hub import push_folder


class Steps:
    """A Progress that records the bytes of each file."""

    def __init__(self) -> None:
        self.total = 0
        self.sent: dict[str, int] = {}

    def start(self, stage: str, total: int = 0) -> None:
        self.total = total

    def advance(self, amount: int = 1, item: str = "") -> None:
        self.sent[item] = amount


def pushed(folder: str, repo: str, **arguments: Any) -> dict[str, Any]:
    """What `push_folder` gives, and its progress; or the class and the sentence of the error."""
    progress = Steps()
    try:
        files = push_folder(Path(folder), repo, **arguments, progress=progress)
    except QuantkitError as error:
        return {"error": type(error).__name__, "sentence": str(error)}
    return {"pushed": {file.path: file.bytes for file in files}, "total": progress.total, "sent": progress.sent}


if __name__ == "__main__":
    print(json.dumps(pushed(**json.loads(sys.argv[1]))))
