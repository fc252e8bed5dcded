"""The command line as a user starts it: a process of its own, its answer, its exit code."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Answer:
    code: int
    stdout: str
    stderr: str

    @property
    def sentence(self) -> str:
        """The one line of an error; asserts that it is one and that no traceback came with it."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("quantkit: ")]
        assert len(lines) == 1, self.stderr
        assert "Traceback" not in self.stderr
        return lines[0]


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "quantkit", *map(str, words)]


def quantkit(
    *words: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: int = 240
) -> Answer:
    """Run `quantkit WORDS...` without a terminal."""
    done = subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "80", **(env or {})},
        timeout=timeout,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)
