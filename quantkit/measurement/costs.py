"""Memory, speed and weight errors of each model: the part of a report that does not need a text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.errors import CheckpointError, QuantkitError, passing_fault
from quantkit.machine import cores
from quantkit.measurement.load_options import LoadOptions
from quantkit.measurement.memory import measure_memory
from quantkit.measurement.speed_rows import measure_speeds
from quantkit.measurement.subjects import Subject
from quantkit.measurement.tensor_errors import tensor_errors
from quantkit.planning.stored_speeds import store_speeds
from quantkit.progress import SILENT, Progress


@dataclass(frozen=True)
class Costs:
    """What to measure besides quality.

    Attributes:
        gpu_layers: the numbers of offloaded layers to measure the memory with. None stands for all layers; an empty
            sequence skips the measurement.
        n_ctx: context of the memory measurement, in tokens.
        speed: measure tokens per second, with the same numbers of layers, and estimate them.
        threads: threads of llama.cpp.
        rpc: llama.cpp rpc-servers ("host:port") whose devices count as GPUs.
        cpu_moe: the first layers, whose experts stay on the CPU.
        kv_on_gpu: the KV cache of a layer is where the layer is; otherwise all of it is on the CPU.
    """

    gpu_layers: Sequence[int | None] = (0, 8, 16, None)
    n_ctx: int = 4096
    speed: bool = False
    threads: int = field(default_factory=cores)
    rpc: Sequence[str] = ()
    cpu_moe: int = 0
    kv_on_gpu: bool = True

    @property
    def load_options(self) -> LoadOptions:
        """How llama.cpp loads a GGUF for these measurements."""
        return LoadOptions(n_threads=self.threads, rpc=self.rpc, cpu_moe=self.cpu_moe, kv_on_gpu=self.kv_on_gpu)


def measure_costs(
    subjects: Sequence[Subject], costs: Costs, progress: Progress = SILENT
) -> tuple[list[dict[str, Any]], list[str]]:
    """The costs of each model, and a note for each missing figure. The first of `subjects` is the reference.

    A mapping has the keys `tensor_errors` (candidates), `memory` and `speed` (GGUF files) of report.json. A figure that
    cannot be measured is absent, and its note gives the reason. Raises CheckpointError: a file could not be read.
    """
    documents: list[dict[str, Any]] = []
    notes: dict[str, None] = {}
    progress.start("costs", len(subjects))
    for number, subject in enumerate(subjects):
        document: dict[str, Any] = {}
        if number:
            progress.advance(0, f"tensors of {subject.name}")
            document |= _or_note(lambda path: _tensors(subjects[0].path, path), subject.path, notes)
        if subject.kind == "gguf" and costs.gpu_layers:
            progress.advance(0, f"memory of {subject.name}")
            document |= _or_note(lambda path: _memory(path, costs, notes), subject.path, notes)
        if subject.kind == "gguf" and costs.speed:
            progress.advance(0, f"speed of {subject.name}")
            document |= _or_note(lambda path: _speed(path, costs, notes), subject.path, notes)
        progress.advance(1, subject.name)
        documents.append(document)
    return documents, list(notes)


def _or_note(work: Callable[[Path], Mapping[str, Any]], path: Path, notes: dict[str, None]) -> Mapping[str, Any]:
    try:
        return work(path)
    except QuantkitError as error:
        if isinstance(error, CheckpointError) or isinstance(passing_fault(error), OSError):
            # the disk failed, or the file changed meanwhile: the same command resumes, and then measures it
            raise
        notes[f"not measured: {error}"] = None
        return {}


def _memory(path: Path, costs: Costs, notes: dict[str, None]) -> Mapping[str, Any]:
    rows, missing = measure_memory(path, costs.gpu_layers, costs.load_options, n_ctx=costs.n_ctx)
    # the same note applies to every model
    notes |= dict.fromkeys(note.removeprefix(f"{path.name}: ") for note in missing)
    return {"memory": [row.document() for row in rows]}


def _tensors(reference: Path, path: Path) -> Mapping[str, Any]:
    errors = tensor_errors(reference, path)
    return {"tensor_errors": [error.document() for error in errors]} if errors else {}


def _speed(path: Path, costs: Costs, notes: dict[str, None]) -> Mapping[str, Any]:
    # without numbers of layers, the usual placement
    rows, estimator, missing = measure_speeds(path, costs.gpu_layers or [None], costs.load_options)
    notes |= dict.fromkeys(missing)
    if estimator:
        store_speeds(tuple(estimator.speeds.values()), estimator.descriptions, costs.threads or cores())
    devices = {"device_speed": estimator.document()} if estimator else {}
    return {"speed": [row.document() for row in rows], **devices}
