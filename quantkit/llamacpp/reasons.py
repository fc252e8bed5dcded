"""Why llama.cpp failed: the line of its log that names the reason."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from quantkit.errors import MissingExtraError

NO_MEMORY = re.compile(
    r"out of memory|failed to allocate|unable to allocate|cannot allocate|bad_alloc|resource temporarily unavailable",
    re.IGNORECASE,
)
NO_SPACE = re.compile(r"no space left on device|disk quota exceeded|input/output error", re.IGNORECASE)

_NO_LIBRARY = re.compile(r"OSError: (\S+): cannot open shared object file")


def telling_line(lines: Sequence[str]) -> str:
    """The first line of llama.cpp's log that tells a reason; "" if there is none.

    Without the names of functions, and without the folder in which llama.cpp was built.
    """
    telling = [line for line in lines if re.search(r"error|invalid|assert|abort|missing|unknown", line, re.IGNORECASE)]
    named = re.sub(r"^(error loading model: |\w+: )+", "", (telling or lines or [""])[0])
    return re.sub(r"^\S*[/\\](?=[\w.-]+:\d+: )", "", named)


def explain(model: Path, answer: Mapping[str, Any] | None, log: IO[bytes]) -> str:
    """One sentence: what llama.cpp could not do, and the first line of its log with the reason.

    Raises MissingExtraError if llama.cpp could not be loaded: this says nothing about `model`.
    """
    log.seek(0)
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    missing = next(filter(None, map(_NO_LIBRARY.search, lines)), None) if answer is None else None
    if missing:
        package = {"libgomp.so.1": " (libgomp1 on Debian and Ubuntu, libgomp on Fedora)"}.get(missing[1], "")
        raise MissingExtraError(
            f"llama.cpp needs {missing[1]}, which is not installed; install it with the system's packages{package}"
        )
    failure = answer["error"] if answer else "stopped without an answer"
    reason = telling_line(lines)
    return f"{model}: llama.cpp {failure}" + (f": {reason}" if reason else "")
