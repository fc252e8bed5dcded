"""The pass over a model: every tensor is read once, in chunks of rows, and written in every type.

Chunks are independent: a thread reads one, widens it to float32, quantizes it for each output and writes each result
at its offset. Rows are quantized one by one, so neither chunks nor threads change a byte.
"""

import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.files import cannot_write, open_partial, partial_path
from quantkit.gguf.kernels import quantize_rows, validate_rows
from quantkit.gguf.layout import Slot
from quantkit.journal import Journal
from quantkit.outputs.gguf_files import GgufPlan
from quantkit.outputs.model import ModelTensor, widen
from quantkit.progress import Progress
from quantkit.system import descriptors


@dataclass(frozen=True)
class Target:
    """The place of a tensor in one output."""

    descriptor: int
    slot: Slot
    label: str


@dataclass(frozen=True)
class Chunk:
    """Rows start..stop of a tensor."""

    tensor: ModelTensor
    start: int
    stop: int
    last_of: "_Countdown"


class _Countdown:
    """Counts a tensor's chunks; the thread that finishes the last one records the tensor."""

    def __init__(self, count: int, done: Callable[[], None]) -> None:
        self._count, self._done, self._lock = count, done, threading.Lock()

    def one_finished(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count:
                return
        self._done()


def run_pass(
    plan: GgufPlan, journal: Journal, progress: Progress, names: Collection[str] | None = None
) -> dict[str, float]:
    """Write the headers and every tensor that the journal does not have yet into partial files.

    `names`: write these tensors only; the files keep what they have, and the caller starts the stage of `progress`.
    Returns the CPU seconds of quantization by output label; a type that two outputs share counts for the first.

    Raises:
        CheckpointError: the source cannot be read, or contains NaN or infinity.
        OutputError: a file cannot be written.
        UnsupportedError: a value does not fit the type.
    """
    with ExitStack() as stack:
        # with records, an earlier stage of this run has already written into the files
        targets = open_targets(plan, stack, keep=names is not None or journal.resumed or bool(journal.records))
        lock = threading.Lock()

        def record(name: str) -> None:
            with lock:
                journal.finished(name)

        tensors = [tensor for tensor in plan.model.tensors if names is None or tensor.name in names]
        todo = [tensor for tensor in tensors if tensor.name not in journal.records]
        if names is None:
            progress.start("converting", plan.n_elements)
        progress.advance(sum(tensor.n_elements for tensor in tensors) - sum(tensor.n_elements for tensor in todo))
        work = (
            (chunk, targets[chunk.tensor.name])
            for tensor in todo
            for chunk in _chunks(tensor, plan.chunk_elements, record)
        )
        pool = stack.enter_context(ThreadPoolExecutor(plan.threads, thread_name_prefix="quantize"))
        return _drain(pool, plan, work, progress)


def forget_lost(plan: GgufPlan, journal: Journal) -> int:
    """Forget the finished tensors if a partial file was removed or truncated; how many tensors are finished."""
    names = [tensor.name for tensor in plan.model.tensors if tensor.name in journal.records]
    if has_all_files(plan):
        return len(names)
    if names:
        journal.forget(names)
    return 0


def has_all_files(plan: GgufPlan) -> bool:
    """Whether every partial file exists at its full size."""
    sizes = {partial_path(output.folder / file.name): file.size for output in plan.outputs for file in output.files}
    return all(path.exists() and path.stat().st_size == size for path, size in sizes.items())


def _drain(
    pool: ThreadPoolExecutor, plan: GgufPlan, work: Iterator[tuple[Chunk, list[Target]]], progress: Progress
) -> dict[str, float]:
    """Submit the work in a bounded queue; the first failure stops the rest. Returns CPU seconds by label."""
    pending: set[Future[dict[str, float]]] = set()
    seconds = dict.fromkeys((output.label for output in plan.outputs), 0.0)

    def collect(finished: Iterable[Future[dict[str, float]]]) -> None:
        for future in finished:
            for label, spent in future.result().items():
                seconds[label] += spent

    try:
        for chunk, targets in work:
            if len(pending) >= 2 * plan.threads:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                collect(done)
            # a source that is read fastest in order is read here, one chunk after the other
            rows = plan.model.read_rows(chunk.tensor.name, chunk.start, chunk.stop) if plan.model.in_order else None
            pending.add(pool.submit(_convert, plan, chunk, targets, progress, rows))
        collect(pending)
    except BaseException:
        for future in pending:
            future.cancel()
        raise
    return seconds


def open_targets(plan: GgufPlan, stack: ExitStack, *, keep: bool) -> dict[str, list[Target]]:
    """Create each file at its full size, so that a full disk is an error now, and write its header; targets by tensor.

    Raises OutputError.
    """
    targets: dict[str, list[Target]] = {}
    for output in plan.outputs:
        for file in output.files:
            path = partial_path(output.folder / file.name)
            try:
                descriptor = open_partial(path, keep=keep)
                stack.callback(os.close, descriptor)
                descriptors.reserve(descriptor, file.size)
                descriptors.write_at(descriptor, file.header, 0)
            except OSError as error:
                raise cannot_write(f"{path.name} ({file.size / 1e6:.0f} MB) into {path.parent}", error) from error
            for slot in file.slots:
                targets.setdefault(slot.name, []).append(Target(descriptor, slot, output.label))
    return targets


def _chunks(tensor: ModelTensor, elements: int, record: Callable[[str], None]) -> Iterator[Chunk]:
    """Row ranges of about `elements` elements; they are multiples of the tensor's step and never cross an expert."""
    step = tensor.row_step * max(1, elements // (tensor.row_step * tensor.n_columns))
    ranges = [
        (first + start, first + min(start + step, tensor.matrix_rows))
        for first in range(0, tensor.n_rows, tensor.matrix_rows)
        for start in range(0, tensor.matrix_rows, step)
    ]
    countdown = _Countdown(len(ranges), lambda: record(tensor.name))
    return (Chunk(tensor, start, stop, countdown) for start, stop in ranges)


def _convert(
    plan: GgufPlan, chunk: Chunk, targets: list[Target], progress: Progress, rows: NDArray[Any] | None
) -> dict[str, float]:
    """Read one chunk (unless `rows` are given), quantize and write it for every output.

    Returns the CPU seconds of quantization by label.
    """
    tensor = chunk.tensor
    if rows is None:
        rows = plan.model.read_rows(tensor.name, chunk.start, chunk.stop)
    floats = widen(rows, tensor)
    check_finite(floats, tensor, chunk.start)
    weights = plan.weights.get(tensor.name)
    importance = None if weights is None else weights[chunk.start // tensor.matrix_rows]
    quantized: dict[GGMLQuantizationType, NDArray[np.uint8]] = {}
    seconds: dict[str, float] = {}
    for target in targets:
        kind = target.slot.type
        if kind not in quantized:
            started = time.thread_time()
            quantized[kind] = quantize_chunk(kind, rows, floats, tensor, importance, target.label)
            seconds[target.label] = time.thread_time() - started
        write_at(target, quantized[kind], chunk.start)
    chunk.last_of.one_finished()
    progress.advance(floats.size, tensor.name)
    return seconds


def quantize_chunk(
    kind: GGMLQuantizationType,
    rows: NDArray[np.generic],
    floats: NDArray[np.float32],
    tensor: ModelTensor,
    importance: NDArray[np.float32] | None,
    label: str,
) -> NDArray[np.uint8]:
    """The bytes of rows in `kind` as llama.cpp writes them. Raises UnsupportedError if a value does not fit."""
    if kind == GGMLQuantizationType.F32:
        return floats.view(np.uint8)
    if kind == tensor.type:
        return np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
    try:
        data = quantize_rows(kind, floats, importance)
    except UnsupportedError as error:
        raise UnsupportedError(f"{label}: tensor {tensor.name}: {error}") from error
    # block scales are checked when the file is read back; half precision overflows on ordinary outliers: check it now
    if kind == GGMLQuantizationType.F16 and not validate_rows(kind, data):
        raise UnsupportedError(
            f"{label}: tensor {tensor.name} has values up to {float(np.abs(floats).max()):.3g}, out of the range of"
            f" {kind.name}; choose bf16 or a quantized type with wider scales"
        )
    return data


def write_at(target: Target, data: NDArray[np.uint8], row: int) -> None:
    """Write the rows of a tensor from `row` on. Raises OutputError."""
    try:
        descriptors.write_at(target.descriptor, data.data, target.slot.offset + row * target.slot.row_bytes)
    except OSError as error:
        raise cannot_write(target.label, error) from error


def check_finite(floats: NDArray[np.float32], tensor: ModelTensor, row: int) -> None:
    """Raise CheckpointError if `floats`, the rows of `tensor` from `row` on, contain NaN or infinity."""
    if not all_finite(floats):
        raise CheckpointError(
            f"tensor {tensor.source} contains NaN or infinity (row {_bad_row(floats) + row} of {tensor.name});"
            " the checkpoint is damaged, download it again or ask its author"
        )


def all_finite(floats: NDArray[np.float32]) -> bool:
    """No NaN, no infinity: either shows in the sum, which is faster; after an overflow every element is checked."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(floats.sum())) or bool(np.isfinite(floats).all())


def _bad_row(floats: NDArray[np.float32]) -> int:
    return int(np.flatnonzero(~np.isfinite(floats).all(axis=1))[0])
