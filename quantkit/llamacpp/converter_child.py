"""The process in which llama.cpp's converter runs: a script for a Python with torch, without imports of quantkit.

    PYTHON converter_child.py REQUEST.json

The request names the converter's script (or None for the installed package), its arguments, and a file for the header.
The converter runs unchanged, except for its last step. Instead of a GGUF it writes only the header, into that file. The
tensors remain in this process, not yet computed, and are served:

    stdin   a JSON line {"tensor": NAME, "offset": BYTES, "size": BYTES}, or {"rows": BYTES} followed by so many bytes
    stdout  a JSON line {"ready": true, "whole": ELEMENTS}, {"size": BYTES} followed by so many bytes,
            {"rows": NAME, "start": ROW, "stop": ROW}, or {"error": KIND, "text": TEXT}

The request's `given` names tensors of the checkpoint whose rows come from the caller (merged adapters). `whole` is the
size of the largest tensor that is not computed row by row.

What the converter prints goes to stderr. The process ends when stdin closes, because then the caller is gone.
"""

import contextlib
import ctypes
import importlib.util
import json
import logging
import os
import queue
import runpy
import signal
import sys
import threading
from pathlib import Path
from typing import Any

_SCRIPT = "convert_hf_to_gguf"
# As in checkpoint/torch_bin.py, which this process does not import.
_SAFE_TORCH = (2, 10)


class _Failure(Exception):
    """A reason that the caller knows by its kind."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def _send(message: dict[str, Any], data: memoryview | None = None) -> None:
    _answers.write(json.dumps(message).encode() + b"\n")
    if data is not None:
        _answers.write(data)
    _answers.flush()


class _Caller:
    """What the caller sends on stdin: requests, and the rows that this process asks for."""

    def __init__(self) -> None:
        self._messages: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while line := sys.stdin.buffer.readline():
            message = json.loads(line)
            size = message.get("rows")
            self._messages.put(message if size is None else sys.stdin.buffer.read(size))
        os._exit(1)

    def request(self) -> dict[str, Any]:
        """The next request; waits for it."""
        message: dict[str, Any] = self._messages.get()
        return message

    def rows(self, tensor: str, start: int, stop: int) -> bytes:
        """Rows of a tensor of the checkpoint, from the caller."""
        _send({"rows": tensor, "start": start, "stop": stop})
        data: bytes = self._messages.get()
        return data


def _end_with_parent() -> None:
    """Linux ends this process when the caller's thread ends, even while it computes."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _module(name: str) -> Any:
    """A module beside this script. No import finds it, because the folder's other modules have common names."""
    spec = importlib.util.spec_from_file_location(f"quantkit_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _script(request: dict[str, Any]) -> Path:
    """The converter's script; of an installed package its module."""
    if request["script"] is not None:
        return Path(request["script"])
    spec = importlib.util.find_spec(_SCRIPT)
    if spec is None or spec.origin is None:
        raise _Failure("converter", "")
    return Path(spec.origin)


def _keep_to_local_code() -> None:
    """Refuse Python files of the checkpoint, and pickles that hold more than tensors."""
    import torch
    from transformers import dynamic_module_utils

    def refused(*_: Any, **__: Any) -> Any:
        raise _Failure("remote code", "")

    def local_only(_trust: Any, _name: Any, has_local_code: bool, has_remote_code: bool, *_: Any, **__: Any) -> bool:
        if has_remote_code and not has_local_code:
            refused()
        return False

    dynamic_module_utils.get_class_from_dynamic_module = refused
    dynamic_module_utils.resolve_trust_remote_code = local_only
    load = torch.load

    def tensors_only(*arguments: Any, **settings: Any) -> Any:
        numbers = torch.__version__.split(".")[:2]
        if all(number.isdecimal() for number in numbers) and tuple(map(int, numbers)) < _SAFE_TORCH:
            raise _Failure("old", f"torch {torch.__version__} cannot read pickled weights safely, 2.10 can")
        return load(*arguments, **{**settings, "weights_only": True})

    torch.load = tensors_only


def _name_pre_tokenizer(pre: str | None) -> None:
    """Take `pre` for the name of the pre-tokenizer; without one, tell the caller if the converter knows none."""
    try:
        from conversion.base import TextModel
    except ImportError:
        if pre is not None:
            raise _Failure("old", "it has no conversion/base.py") from None
        return
    known = TextModel.get_vocab_base_pre

    def name(self: Any, tokenizer: Any) -> Any:
        if pre is not None:
            return pre
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            raise _Failure("pre", "") from None

    TextModel.get_vocab_base_pre = name


def _serve_instead_of_writing(request: dict[str, Any], caller: _Caller, tensors: Any) -> None:
    """Replace the writer's last steps: the header goes into a file, the tensors to the caller."""
    import gguf

    writer = gguf.GGUFWriter
    for name in ("write_header_to_file", "write_kv_data_to_file", "write_ti_data_to_file", "write_tensors_to_file"):
        if not hasattr(writer, name):
            raise _Failure("old", f"its gguf package has no {name}")
    write_header = writer.write_header_to_file

    def header(self: Any, path: Any = None) -> None:
        write_header(self, Path(request["header"]))

    def serve(self: Any, *_: Any, **__: Any) -> None:
        self.write_ti_data_to_file()
        size = sum(-(-info.nbytes // self.data_alignment) * self.data_alignment for info in self.tensors[0].values())
        for file in self.fout:
            # the reader of headers wants a file of the full size; nothing is stored for a hole
            file.truncate(file.tell() + size + self.data_alignment)
            file.close()
        infos = {name: info.tensor for name, info in self.tensors[0].items()}
        served = tensors.TensorBytes(infos, gguf.LazyBase, getattr(gguf, "LazyChunkedTensor", None))
        _send({"ready": True, "whole": served.whole_elements()})
        while True:
            byte_range = caller.request()
            try:
                data = served.read(byte_range["tensor"], byte_range["offset"], byte_range["size"])
            except EOFError as error:
                raise _Failure("tensor", f"{byte_range['tensor']} {error}") from None
            _send({"size": len(data)}, data)
            # it would keep the whole tensor while the next one is computed
            del data

    writer.write_header_to_file = header
    writer.write_tensors_to_file = serve


class _LastError(logging.Handler):
    """Keeps the last error that the converter logs, which is its reason when it exits."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


def _run(request: dict[str, Any]) -> None:
    caller = _Caller()
    tensors = _module("converter_tensors")
    # this script's own folder holds modules of quantkit, whose names others may use
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]
    script = _script(request)
    sys.path.insert(0, str(script.parent))
    if (script.parent / "gguf-py").is_dir() and "NO_LOCAL_GGUF" not in os.environ:
        sys.path.insert(1, str(script.parent / "gguf-py"))
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise _Failure("missing", package)
    _keep_to_local_code()
    _serve_instead_of_writing(request, caller, tensors)
    if request["given"]:
        _module("converter_given").take_from_caller(request["given"], caller.rows)
    _name_pre_tokenizer(request["pre"])
    sys.argv = [str(script), *request["arguments"]]
    runpy.run_path(str(script), run_name="__main__")


def main() -> None:
    """Run the converter up to its header, then serve tensors until stdin closes."""
    # the caller is in the same process group, and handles the interrupt
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    last = _LastError(logging.ERROR)
    logging.getLogger().addHandler(last)
    try:
        _run(json.loads(Path(sys.argv[1]).read_text()))
        _send({"error": "failed", "text": "it wrote no GGUF"})
    except _Failure as failure:
        _send({"error": failure.kind, "text": str(failure)})
    except BaseException as error:
        _send(_module("converter_reasons").failure(error, last.text))


if __name__ == "__main__":
    _answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    main()
