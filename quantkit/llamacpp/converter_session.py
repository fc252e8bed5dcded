"""llama.cpp's converter in a separate process (converter_child.py).

It never writes a model: it gives the header of its GGUF, then the bytes of one tensor after the other.
"""

import contextlib
import json
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import PassingError, QuantkitError, ReadError, UsageError
from quantkit.gguf.reader import GgufHeader, read_header
from quantkit.llamacpp.converter import Converter, ConverterOptions
from quantkit.llamacpp.converter_failures import converter_failure
from quantkit.scratch import drop_scratch, make_scratch
from quantkit.system import memory
from quantkit.system.processes import was_killed

_SECRETS = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY|CREDENTIAL", re.IGNORECASE)
_SECONDS_TO_DIE = 5.0


def _link_checkpoint(checkpoint: Path, link: Path, config: bytes | None) -> None:
    """`link` shows the folder `checkpoint`, with `config` in place of its config.json unless that is None."""
    if config is None:
        link.symlink_to(checkpoint, target_is_directory=True)
        return
    link.mkdir()
    for path in checkpoint.iterdir():
        if path.name != "config.json":
            (link / path.name).symlink_to(path.resolve())
    (link / "config.json").write_bytes(config)


class ConverterSession:
    """A running converter. `header` is that of the GGUF that it would write; `read` gives bytes of its tensors.

    Threads may call `read` at the same time. The converter computes the requested rows alone where it can. It keeps any
    other tensor whole until the next one, so reads in the order of the tensors are fast. `largest_whole`: the elements
    of the largest such tensor.
    """

    def __init__(self, converter: Converter, checkpoint: Path, name: str, options: ConverterOptions) -> None:
        """Start the converter on the folder `checkpoint`, which it sees under `name`, and wait for its header.

        Raises:
            UnsupportedError: the converter does not know the architecture or the tokenizer, or needs remote code.
            QuantkitError: it failed otherwise; the message names the reason.
        """
        self.converter, self._seconds, self._given = converter, options.seconds, options.given
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._folder = make_scratch()
        try:
            # the converter takes the model's name from its folder; that of a hub snapshot is a hash
            link = self._folder / name
            _link_checkpoint(checkpoint.resolve(), link, self._given.config if self._given else None)
            file = self._folder / "header.gguf"
            self._start(
                file, [str(link), "--outfile", str(self._folder / "none.gguf"), *options.arguments], options.pre
            )
            answer = self._answer()
            if not answer.get("ready"):
                raise self._failure(answer)
            self.header: GgufHeader = read_header(file)
            self.largest_whole: int = answer.get("whole", 0)
        except BaseException:
            self.close()
            raise
        self._where = {slot.name: slot for slot in self.header.tensors}

    def read(self, tensor: str, offset: int, size: int) -> NDArray[np.uint8]:
        """`size` bytes of a tensor's data from byte `offset` on.

        Raises:
            ReadError: the converter failed or hung; a rerun resumes.
        """
        with self._lock:
            assert self._child is not None and self._child.stdin is not None and self._child.stdout is not None
            request = {"tensor": tensor, "offset": offset, "size": size}
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.write(json.dumps(request).encode() + b"\n")
                self._child.stdin.flush()
            data = np.empty(size, np.uint8)
            answer = self._answer(data)
        if answer.get("size") != size:
            failure = self._failure(answer)
            if isinstance(failure, PassingError):
                raise failure
            raise ReadError(f"tensor {tensor} could not be read: {failure}; the finished work is kept") from failure
        return data

    def header_bytes(self, size: int) -> bytes:
        """The first `size` bytes of the GGUF: its header, and zeros up to its first tensor."""
        with self.header.path.open("rb") as file:
            return file.read(size)

    @property
    def memory(self) -> int:
        """Bytes of memory that the process holds now."""
        return (memory.resident(self._child.pid) or 0) if self._child else 0

    def close(self) -> None:
        """End the process and remove its folder."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
        self._log.close()
        drop_scratch(self._folder)

    def _start(self, header: Path, arguments: Sequence[str], pre: str | None) -> None:
        script = str(self.converter.script) if self.converter.script else None
        tensors = self._given
        shapes = (
            {name: {"dtype": tensors.dtypes[name], "shape": tensors.shapes[name]} for name in tensors.dtypes}
            if tensors
            else {}
        )
        request = {
            "script": script,
            "header": str(header),
            "arguments": list(arguments),
            "pre": pre,
            "given": shapes,
        }
        file = self._folder / "request.json"
        file.write_text(json.dumps(request))
        environment = {name: value for name, value in os.environ.items() if not _SECRETS.search(name)}
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment.pop("PYTHONPATH", None)  # of quantkit's own Python
        child = Path(__file__).with_name("converter_child.py")
        try:
            self._child = subprocess.Popen(
                [str(self.converter.python), str(child), str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment,
                bufsize=1 << 20,
            )
        except OSError as error:
            raise UsageError(
                f"{self.converter.python} cannot be run ({error.strerror}); pass the Python of llama.cpp's converter to"
                " --converter-python"
            ) from error

    def _answer(self, data: NDArray[np.uint8] | None = None) -> dict[str, Any]:
        """The child's next message, its bytes in `data`; {} if it ended without one, {"late": True} if it hung."""
        assert self._child is not None and self._child.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._child.kill()  # type: ignore[union-attr]

        watchdog = threading.Timer(self._seconds, stop)
        watchdog.daemon = True
        watchdog.start()
        try:
            answer = self._message()
            while "rows" in answer:
                self._give(answer)
                answer = self._message()
            if data is not None and answer.get("size") == data.size:
                view, done = data.data, 0
                while done < data.size:
                    count = self._child.stdout.readinto(view[done:])  # type: ignore[attr-defined]
                    if not count:
                        answer = {}
                        break
                    done += count
        finally:
            watchdog.cancel()
        return {"late": True} if late.is_set() else answer

    def _message(self) -> dict[str, Any]:
        assert self._child is not None and self._child.stdout is not None
        line = self._child.stdout.readline()
        message: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
        return message

    def _give(self, request: Mapping[str, Any]) -> None:
        """Send the child the rows that it asks for."""
        assert self._child is not None and self._child.stdin is not None and self._given is not None
        rows = np.ascontiguousarray(self._given.rows(request["rows"], request["start"], request["stop"]))
        data = rows.reshape(-1).view(np.uint8).data
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps({"rows": len(data)}).encode() + b"\n")
            self._child.stdin.write(data)
            self._child.stdin.flush()

    def _failure(self, answer: Mapping[str, Any]) -> QuantkitError:
        """The error that an answer stands for."""
        assert self._child is not None
        converter, kind, text = (
            f"llama.cpp's converter in {self.converter.name}",
            answer.get("error"),
            answer.get("text"),
        )
        if answer.get("late"):
            return QuantkitError(
                f"{converter} gave no answer in {self._seconds:g} seconds and was stopped; run it again"
            )
        if kind is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(_SECONDS_TO_DIE)
            if was_killed(self._child.returncode):
                return PassingError(f"{converter} was killed (too little memory?); free some memory and run it again")
            reason = self._last_line()
            return QuantkitError(
                f"{converter} stopped with code {self._child.returncode}{f' ({reason})' if reason else ''}"
            )
        return converter_failure(kind, converter, self.converter.python, text or "")

    def _last_line(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return lines[-1][:200] if lines else ""
