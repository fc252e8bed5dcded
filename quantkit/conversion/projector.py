"""A projector (mmproj) without rules of quantkit's: the GGUF that llama.cpp's converter writes with --mmproj.

llama.cpp loads it beside the text model. The converter chooses the types of its tensors, so its bytes are copied.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit.checkpoint import Checkpoint
from quantkit.conversion.output_record import OutputRecord, record_outputs
from quantkit.errors import OutputError, UsageError, VerificationError
from quantkit.files import make_folder, open_partial, partial_path, refuse_existing, require_space, sync
from quantkit.gguf.file_types import FileType
from quantkit.gguf.layout import padded
from quantkit.gguf.reader import GgufHeader, read_header
from quantkit.llamacpp.converter import FOLDER_VARIABLE, ConverterOptions, find_converter
from quantkit.llamacpp.converter_session import ConverterSession
from quantkit.outputs.converted import converter_version
from quantkit.outputs.model import Model, origin_of
from quantkit.progress import SILENT, Progress
from quantkit.verify.check import Check

_PIECE = 1 << 24
"""Bytes that are in memory at once."""


@dataclass(frozen=True)
class Projector:
    """A projector under its partial name. `size` in bytes."""

    path: Path
    type: FileType
    size: int
    sha256: str
    mix: dict[str, int]
    parameters: int
    seconds: float


def write_projectors(
    source: Checkpoint | Model,
    types: Sequence[FileType],
    folder: Path,
    name: str,
    options: ConverterOptions,
    *,
    force: bool = False,
    progress: Progress = SILENT,
) -> list[Projector]:
    """Write folder/mmproj-NAME-TYPE.gguf for each type, under partial names that `name_projectors` replaces.

    `source`: a checkpoint, or the model of one that the converter reads.

    Raises:
        UsageError: no converter is named.
        UnsupportedError, QuantkitError: see `ConverterSession`; the model has no tower that the converter knows.
        OutputError: a file exists (see `force`), or the folder is not writable or too small.
    """
    tool = find_converter(options, progress=progress)
    if tool is None:
        raise UsageError(
            "--mmproj needs llama.cpp's converter; pass a checkout of llama.cpp to --converter, or set"
            f" {FOLDER_VARIABLE}"
        )
    paths = [folder / f"mmproj-{name}-{kind.label}.gguf" for kind in types]
    refuse_existing(paths, force=force)
    projectors = []
    for kind, path in zip(types, paths, strict=True):
        arguments = (*options.arguments, "--mmproj", "--outtype", kind.name)
        assert source.folder is not None
        session = ConverterSession(tool, source.folder, source.name, replace(options, arguments=arguments))
        try:
            projectors.append(_write(session, path, kind, progress))
        finally:
            session.close()
    return projectors


def name_projectors(projectors: Sequence[Projector], source: Checkpoint | Model, options: ConverterOptions) -> None:
    """Give the projectors their final names, and add them to the folder's quantkit.json."""
    tool = find_converter(options)
    assert tool is not None
    origin = {**origin_of(source), "converter": converter_version(tool)}
    for projector in projectors:
        partial_path(projector.path).replace(projector.path)
        sync(projector.path.parent)
        record_outputs(projector.path.parent, {projector.path.stem: _record(projector, origin)})


def drop_projectors(projectors: Sequence[Projector]) -> None:
    """Remove the partial files, because the text model was not converted."""
    for projector in projectors:
        partial_path(projector.path).unlink(missing_ok=True)


def _write(session: ConverterSession, path: Path, kind: FileType, progress: Progress) -> Projector:
    started, header, partial = time.monotonic(), session.header, partial_path(path)
    size = max(slot.offset + padded(slot.nbytes) for slot in header.tensors)
    require_space(path.parent, size, [partial])
    make_folder(path.parent)
    progress.start("converting the projector", size)
    digest = hashlib.sha256()
    try:
        with os.fdopen(open_partial(partial, keep=False), "wb") as out:
            for data in _pieces(session, header, size):
                out.write(data)
                digest.update(data)
                progress.advance(len(data), path.name)
        sync(partial)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder with -o"
        ) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if [slot.name for slot in read_header(partial).tensors] != [slot.name for slot in header.tensors]:
        partial.unlink(missing_ok=True)
        raise VerificationError(f"{path.name} reads back with other tensors; run the command again")
    mix: dict[str, int] = {}
    parameters = 0
    for slot in header.tensors:
        mix[slot.type.name] = mix.get(slot.type.name, 0) + 1
        parameters += slot.nbytes // slot.row_bytes * slot.shape[-1]
    return Projector(path, kind, size, digest.hexdigest(), mix, parameters, time.monotonic() - started)


def _pieces(session: ConverterSession, header: GgufHeader, size: int) -> Iterator[bytes]:
    """The bytes of the file: the converter's header, then each tensor padded to the next."""
    slots = sorted(header.tensors, key=lambda slot: slot.offset)
    yield session.header_bytes(slots[0].offset)
    position = slots[0].offset
    for slot in slots:
        yield b"\0" * (slot.offset - position)
        for start in range(0, slot.nbytes, _PIECE):
            yield session.read(slot.name, start, min(_PIECE, slot.nbytes - start)).tobytes()
        position = slot.offset + slot.nbytes
    yield b"\0" * (size - position)


def _record(projector: Projector, origin: dict[str, Any]) -> OutputRecord:
    return OutputRecord(
        origin=origin,
        type=f"{projector.type.name} projector",
        files={projector.path.name: (projector.size, projector.sha256)},
        checks=[Check("structure", "passed", "the header reads back")],
        seconds={"write": projector.seconds},
        seconds_cover=[projector.type.label],
        error_method="none: llama.cpp's converter rounds a projector",
        facts={"options": {}, "parameters": projector.parameters, "type_mix": projector.mix},
    )
