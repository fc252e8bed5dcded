"""Folders that need no calibration: every tensor is read once, in pieces of rows, and written in every such format.

A thread takes one tensor at a time, so memory does not depend on the model. A finished tensor is a step of the journal.
"""

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from math import lcm, prod
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from quantkit.conversion.gguf_pass import all_finite
from quantkit.errors import CheckpointError
from quantkit.families.base.native import Native
from quantkit.files import partial_path
from quantkit.journal import Journal
from quantkit.outputs.direct import PIECE_ELEMENTS
from quantkit.outputs.packed_folders import FolderPlan, in_file_order
from quantkit.outputs.plan import ConversionPlan
from quantkit.packed.formats import DirectFormat
from quantkit.packed.writer import FolderWriter
from quantkit.progress import Progress
from quantkit.quant.grid import Array

Hashes = Mapping[str, str]
"""sha256 of a tensor's bytes as they were written, by name."""


@dataclass(frozen=True)
class DirectFolders:
    """Finished folders. `hashes` of their tensors by method; `resumed`: tensors that an earlier run finished."""

    hashes: Mapping[str, Hashes]
    resumed: int


@dataclass(frozen=True)
class _Folder:
    plan: FolderPlan
    writer: FolderWriter
    format: DirectFormat
    linears: Mapping[str, str]
    """The name of a quantized weight -> the name of its linear."""
    merged: Mapping[str, tuple[str, ...]]
    """The name of a quantized weight -> the quantized weights of its input."""


def write_direct_folders(plan: ConversionPlan, journal: Journal, progress: Progress) -> DirectFolders:
    """Write the direct folders of a plan, still under their partial names; the caller flushes their weight files.

    Raises:
        CheckpointError: the source cannot be read, or contains NaN or infinity.
        UnsupportedError: a value does not fit the type of unquantized tensors.
        OutputError: a file cannot be written.
    """
    native = plan.native
    assert native is not None
    names = in_file_order(native)
    with ExitStack() as stack:
        folders = _open_all(plan, native, stack, journal, keep=_has_steps(journal))
        progress.start("quantizing", sum(prod(native.tensors[name].shape) for name in names))
        resumed = _write_tensors(plan, names, folders, journal, progress)
        for folder in folders:
            config = folder.plan.config(native.config)
            folder.writer.finish(config, native.checkpoint.folder, folder.plan.more_files(), flush=False)
        records = [journal.records[direct_step(name)] for name in names]
    methods = [folder.plan.request.method for folder in folders]
    hashes = {
        method: {name: digest for record in records for name, digest in record[method].items()} for method in methods
    }
    return DirectFolders(hashes, resumed)


def write_direct_tensors(plan: ConversionPlan, journal: Journal, progress: Progress, names: Collection[str]) -> None:
    """Write these tensors of the source into the direct folders; `write_direct_folders` finishes them.

    Raises as `write_direct_folders` does.
    """
    native = plan.native
    assert native is not None
    with ExitStack() as stack:
        folders = _open_all(plan, native, stack, journal, keep=True)
        _write_tensors(plan, [name for name in in_file_order(native) if name in names], folders, journal, progress)


def _open_all(
    plan: ConversionPlan, native: Native, stack: ExitStack, journal: Journal, *, keep: bool
) -> "list[_Folder]":
    """The open folders. If a file of one is lost, the journal forgets what was written into all of them."""
    folders = [_open(folder, native, stack, keep=keep) for folder in plan.direct_folders]
    if not all(folder.writer.resumed for folder in folders):
        journal.forget([step for step in journal.records if step.startswith(_STEP)])
    return folders


def _write_tensors(
    plan: ConversionPlan, names: Sequence[str], folders: "Sequence[_Folder]", journal: Journal, progress: Progress
) -> int:
    """Write the tensors that the journal does not have, a thread each; how many it had."""
    native = plan.native
    assert native is not None
    sizes = {name: prod(native.tensors[name].shape) for name in names}
    todo = [name for name in names if direct_step(name) not in journal.records]
    progress.advance(sum(sizes.values()) - sum(sizes[name] for name in todo))
    lock = threading.Lock()

    def write(name: str) -> None:
        record = _write_tensor(native, name, folders)
        with lock:
            journal.finished(direct_step(name), record)
        progress.advance(sizes[name], name)

    with ThreadPoolExecutor(plan.threads, thread_name_prefix="quantize") as pool:
        futures = [pool.submit(write, name) for name in todo]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    return len(names) - len(todo)


_STEP = "folders: "


def direct_step(name: str) -> str:
    """The step of the journal for a tensor of the source."""
    return _STEP + name


def _has_steps(journal: Journal) -> bool:
    return any(step.startswith(_STEP) for step in journal.records)


def _open(plan: FolderPlan, native: Native, stack: ExitStack, *, keep: bool) -> _Folder:
    writer = stack.enter_context(FolderWriter(partial_path(plan.folder), plan.shards, keep=keep))
    assert isinstance(plan.format, DirectFormat)
    weights = {name + linear.form.weight: name for name, linear in plan.quantized.items()}
    merged: dict[str, tuple[str, ...]] = {}
    for layer in plan.layers:
        for entry in layer.inputs:
            input_weights = [linear.weight for linear in entry.linears if linear.name in plan.quantized]
            merged |= dict.fromkeys(input_weights, tuple(input_weights))
    return _Folder(plan, writer, plan.format, weights, merged)


def _write_tensor(native: Native, name: str, folders: Sequence[_Folder]) -> dict[str, dict[str, str]]:
    """Write one tensor of the source into every folder; the sha256 of what was written, by method and tensor."""
    tensor = native.tensors[name]
    rows, inner = tensor.part_rows * len(tensor.parts), prod(tensor.shape[1:-1])
    step = lcm(inner, *(folder.format.row_step for folder in folders))
    step *= max(1, PIECE_ELEMENTS // (step * (tensor.shape or (1,))[-1]))

    surveyed = {
        folder.format.name: folder.format.survey(
            _pieces(native, folder.merged[name] if folder.format.shares_survey else (name,))
        )
        for folder in folders
        if name in folder.linears
    }
    for start in range(0, rows, step):
        piece = native.rows(name, start, min(rows, start + step))
        values: Array | None = None
        for folder in folders:
            linear = folder.linears.get(name)
            if linear is None:
                shape = (-1,) if len(tensor.shape) < 2 else (-1, *tensor.shape[1:])
                folder.writer.write(name, piece.reshape(shape), first_row=start // inner)
                continue
            encoded = None
            if piece.dtype == ml_dtypes.bfloat16:
                encoded = folder.format.encode_bfloat16(piece, folder.plan.request)
            if encoded is None:
                values = _finite(name, piece) if values is None else values
                encoded = folder.format.encode(values, folder.plan.request, surveyed[folder.format.name])
            for suffix, stored in encoded.items():
                at = folder.plan.tensor(linear, suffix)
                folder.writer.write(at, stored, first_row=start * len(stored) // max(len(piece), 1))
            if start == 0:
                once = folder.format.once(folder.plan.request, surveyed[folder.format.name])
                for suffix, stored in once.items():
                    folder.writer.write(folder.plan.tensor(linear, suffix), stored)
    return {folder.plan.request.method: _hashes(folder, name) for folder in folders}


def _finite(name: str, piece: NDArray[Any]) -> Array:
    """The rows in float32. Raises CheckpointError if they contain NaN or infinity."""
    values: Array = piece.astype(np.float32)
    if not all_finite(values):
        raise CheckpointError(
            f"tensor {name} contains NaN or infinity; the source is damaged or states a wrong dtype, download it again"
        )
    return values


def _pieces(native: Native, names: Sequence[str]) -> Iterator[Array]:
    """The rows of tensors, a few at a time."""
    for name in names:
        tensor = native.tensors[name]
        rows, step = tensor.part_rows * len(tensor.parts), max(1, PIECE_ELEMENTS // tensor.shape[-1])
        for start in range(0, rows, step):
            yield native.rows(name, start, min(rows, start + step)).astype(np.float32)


def _hashes(folder: _Folder, name: str) -> dict[str, str]:
    linear = folder.linears.get(name)
    if linear is None:
        return {name: folder.writer.sha256(name)}
    tensors = [folder.plan.tensor(linear, suffix) for suffix in folder.plan.stored(folder.plan.quantized[linear])]
    return {tensor: folder.writer.sha256(tensor) for tensor in tensors}
