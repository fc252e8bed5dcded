"""Writing an adapter GGUF: one tensor in memory at a time, under a partial name, read back before it gets its name."""

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.adapters.adapter import Adapter
from quantkit.conversion.output_record import OutputRecord, record_outputs
from quantkit.errors import CheckpointError, UnsupportedError, VerificationError
from quantkit.files import cannot_write, make_folder, open_partial, partial_path, refuse_existing, require_space, sync
from quantkit.gguf.kernels import quantize_rows, validate_rows
from quantkit.gguf.reader import read_header
from quantkit.outputs.adapter_gguf import AdapterFile, AdapterTensor
from quantkit.progress import SILENT, Progress
from quantkit.system.python import file_sha256
from quantkit.verify.check import Check


@dataclass(frozen=True)
class WrittenAdapter:
    """An adapter GGUF. `seconds`: of writing and reading back."""

    file: AdapterFile
    sha256: str
    seconds: float


def write_adapter_gguf(
    file: AdapterFile, adapter: Adapter, *, force: bool = False, progress: Progress = SILENT
) -> WrittenAdapter:
    """Write the file, read it back, and add it to the folder's quantkit.json.

    Raises:
        OutputError: the folder is not writable or too small, or the file exists (see `force`).
        CheckpointError: a matrix contains NaN or infinity.
        UnsupportedError: a value is out of the range of the type.
        VerificationError: the file on the disk is not the one that was written.
    """
    started = time.monotonic()
    refuse_existing([file.path], force=force)
    partial = partial_path(file.path)
    require_space(file.folder, file.layout.size, [partial])
    make_folder(file.folder)
    progress.start("writing", file.layout.size)
    digest = hashlib.sha256()
    descriptor = open_partial(partial, keep=False)
    try:
        with os.fdopen(descriptor, "wb") as out:
            for name, data in _pieces(file, adapter):
                out.write(data)
                digest.update(data)
                progress.advance(len(data), name)
        _read_back(file, digest.hexdigest())
        sync(partial)
        written = WrittenAdapter(file, digest.hexdigest(), time.monotonic() - started)
        # first, so that the output is complete once the file has its final name
        record_outputs(file.folder, {file.stem: _record(written)})
        _publish(file.path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise cannot_write(file.path, error) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return written


def _publish(path: Path) -> None:
    """Give the file its final name. If that may not last, it is taken back: the same command then writes it again."""
    partial_path(path).replace(path)
    try:
        sync(path.parent)
        path.stat()  # raises where the folder was removed meanwhile: a removed folder can still be flushed
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _pieces(file: AdapterFile, adapter: Adapter) -> Iterator[tuple[str, bytes]]:
    """The bytes of the file in order, each with the name of its tensor."""
    yield "", file.layout.header
    position = len(file.layout.header)
    for tensor, slot in zip(file.tensors, file.layout.slots, strict=True):
        data = b"\0" * (slot.offset - position) + _data(tensor, adapter).tobytes()
        position += len(data)
        yield tensor.name, data
    yield "", b"\0" * (file.layout.size - position)


def _data(tensor: AdapterTensor, adapter: Adapter) -> NDArray[np.uint8]:
    rows = np.concatenate([cut.read(adapter) for cut in tensor.cuts])
    if not np.isfinite(rows).all():
        raise CheckpointError(
            f"tensor {tensor.cuts[0].tensor.name} of {adapter.source} contains NaN or infinity; save the adapter again"
        )
    data = quantize_rows(tensor.type, rows)
    if not validate_rows(tensor.type, data):
        raise UnsupportedError(
            f"tensor {tensor.name} has values up to {float(np.abs(rows).max()):.3g}, out of the range of"
            f" {tensor.type.name}; choose -t f32 or -t bf16"
        )
    return data


def _read_back(file: AdapterFile, sha256: str) -> None:
    partial = partial_path(file.path)
    header = read_header(partial)
    slots = [(slot.name, slot.shape, slot.type) for slot in header.tensors]
    if slots != [(slot.name, slot.shape, slot.type) for slot in file.layout.slots]:
        raise VerificationError(f"{file.path.name} reads back with other tensors; run the command again")
    with partial.open("rb") as stream:
        if file_sha256(stream) != sha256:
            raise VerificationError(f"{file.path.name} reads back with other bytes; check the disk")


def _record(written: WrittenAdapter) -> OutputRecord:
    file = written.file
    mix: dict[str, int] = {}
    for tensor in file.tensors:
        mix[tensor.type.name] = mix.get(tensor.type.name, 0) + 1
    return OutputRecord(
        origin=file.origin,
        type=f"{file.type.name} adapter",
        files={file.layout.name: (file.layout.size, written.sha256)},
        checks=[Check("structure", "passed", f"{len(file.tensors)} tensors read back")],
        seconds={"write": written.seconds},
        seconds_cover=[file.type.label],
        error_method="none: an adapter is not measured alone",
        warnings=file.notes,
        facts={"options": {}, "family": file.family, "parameters": file.parameters, "type_mix": mix},
    )
