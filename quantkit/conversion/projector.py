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
from quantkit.errors import UsageError, VerificationError
from quantkit.files import cannot_write, make_folder, open_partial, partial_path, require_space, sync
from quantkit.gguf.file_types import FileType
from quantkit.gguf.layout import padded
from quantkit.gguf.reader import GgufHeader, read_header
from quantkit.journal import Journal
from quantkit.llamacpp.converter import FOLDER_VARIABLE, ConverterOptions, find_converter
from quantkit.llamacpp.converter_session import ConverterSession
from quantkit.outputs.bridged_projector import BridgedProjectors
from quantkit.outputs.converted import converter_version
from quantkit.outputs.model import Model, origin_of
from quantkit.outputs.plan import ConversionPlan
from quantkit.progress import SILENT, Progress
from quantkit.verify.check import Check

_PIECE = 1 << 24
"""Bytes that are in memory at once."""
_STEP = "projector "


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


def plan_bridged(
    plan: ConversionPlan,
    source: Checkpoint | Model,
    types: tuple[FileType, ...],
    options: ConverterOptions,
    progress: Progress = SILENT,
) -> ConversionPlan:
    """The plan of `source` that also writes its projectors in `types`.

    `source`: a checkpoint, or the model of one that the converter reads.

    Raises UsageError if no converter is named.
    """
    tool = find_converter(options, progress=progress)
    if tool is None:
        raise UsageError(
            "--mmproj needs llama.cpp's converter; pass a checkout of llama.cpp to --converter, or set"
            f" {FOLDER_VARIABLE}"
        )
    assert plan.gguf is not None and source.folder is not None
    origin = {**origin_of(source), "converter": converter_version(tool)}
    folder = plan.gguf.request.folder
    return plan.with_bridged(
        BridgedProjectors(types, folder, plan.name, source.folder, source.name, tool, options, origin)
    )


def write_projectors(
    plan: BridgedProjectors | None, journal: Journal, progress: Progress = SILENT
) -> tuple[Projector, ...]:
    """Write the projectors under partial names. Each is a step of the journal.

    Raises:
        UnsupportedError, QuantkitError: see `ConverterSession`; the model has no tower that the converter knows.
        OutputError: the folder is not writable or too small.
    """
    if plan is None:
        return ()
    projectors = []
    for kind, path in zip(plan.types, plan.paths, strict=True):
        partial, record = partial_path(path), journal.records.get(_STEP + path.name)
        if record is not None and partial.is_file() and partial.stat().st_size == record["size"]:
            projectors.append(Projector(path, kind, **record))
            continue
        arguments = (*plan.options.arguments, "--mmproj", "--outtype", kind.name)
        session = ConverterSession(plan.tool, plan.source, plan.source_name, replace(plan.options, arguments=arguments))
        try:
            projector = _write(session, path, kind, progress)
        finally:
            session.close()
        facts = {name: value for name, value in vars(projector).items() if name not in ("path", "type")}
        journal.finished(_STEP + path.name, facts)
        projectors.append(projector)
    return tuple(projectors)


def record_projectors(plan: BridgedProjectors | None, projectors: Sequence[Projector]) -> None:
    """Add the projectors to the folder's quantkit.json. Raises OutputError."""
    if plan is not None:
        record_outputs(plan.folder, {item.path.stem: _record(item, dict(plan.origin)) for item in projectors})


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
        raise cannot_write(path, error) from error
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
