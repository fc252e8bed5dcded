"""The process that renders untrusted templates, forked from one that has loaded Jinja already.

quantkit starts an interpreter for each template, which takes 0.2 s of CPU. Here one interpreter forks for each: the
limits of time and memory, and the environment, are those of quantkit's own child. As a script: that interpreter. It
reads a length and a message, and writes a length and the answer.
"""

import os
import subprocess
import sys

from quantkit.chat import contained

start_child = contained._child


class ForkedChild:
    """`contained._child` by one interpreter, started with the first template."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, message: bytes) -> bytes:
        if self._process is None:
            environment = {**contained._environment(), "PYTHONDONTWRITEBYTECODE": "1"}
            command = [sys.executable, "-m", "tests.helpers.render_child"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(len(message).to_bytes(8, "big") + message)
        self._process.stdin.flush()
        length = int.from_bytes(self._process.stdout.read(8), "big")
        return self._process.stdout.read(length)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None


def _serve() -> None:
    while head := sys.stdin.buffer.read(8):
        message = sys.stdin.buffer.read(int.from_bytes(head, "big"))
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            with os.fdopen(writing, "w", encoding="utf-8") as answer:
                answer.write(contained.answer_message(message.decode()))
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as answer:
            text = answer.read()
        os.waitpid(child, 0)
        sys.stdout.buffer.write(len(text).to_bytes(8, "big") + text)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
