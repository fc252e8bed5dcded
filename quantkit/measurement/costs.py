"""What a model costs where it runs, and where its weights went wrong: the rest of a report, model by model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError
from quantkit.measurement.memory import measure_memory
from quantkit.measurement.speed import measure_speed
from quantkit.measurement.subjects import Subject
from quantkit.measurement.tensor_errors import tensor_errors


@dataclass(frozen=True)
class Costs:
    """What to measure besides quality. `gpu_layers`: numbers of offloaded layers to measure the memory with, None for
    all, empty for not at all; `n_ctx`: of that context; `rpc`: servers ("host:port") whose devices count.
    """

    gpu_layers: Sequence[int | None]
    n_ctx: int
    speed: bool
    threads: int
    rpc: Sequence[str] = ()


def add_costs(
    models: Sequence[dict[str, Any]],
    subjects: Sequence[Subject],
    costs: Costs,
    *,
    step: Callable[[str], object],
    warn: Callable[[str], object],
) -> None:
    """Add to the documents of `subjects` (see measurement.measure), the reference first: `memory` and `speed` of each
    GGUF, `tensor_errors` of each candidate.

    What cannot be measured is absent, and `warn` gets the reason. `step(text)` says what is done now.
    """
    notes: dict[str, None] = {}
    for model, subject in zip(models, subjects, strict=True):
        if subject is not subjects[0]:
            step(f"tensors of {subject.name}")
            model |= _told(lambda path: _tensors(subjects[0].path, path), subject.path, notes)
        if subject.kind != "gguf":
            continue
        if costs.gpu_layers:
            step(f"memory of {subject.name}")
            model |= _told(lambda path: _memory(path, costs, notes), subject.path, notes)
        if costs.speed:
            step(f"speed of {subject.name}")
            model |= _told(lambda path: _speed(path, costs), subject.path, notes)
    for note in notes:
        warn(note)


def _told(work: Callable[[Path], Mapping[str, Any]], path: Path, notes: dict[str, None]) -> Mapping[str, Any]:
    try:
        return work(path)
    except QuantkitError as error:
        notes[f"not measured: {error}"] = None
        return {}


def _memory(path: Path, costs: Costs, notes: dict[str, None]) -> Mapping[str, Any]:
    rows, missing = measure_memory(path, costs.gpu_layers, n_ctx=costs.n_ctx, n_threads=costs.threads, rpc=costs.rpc)
    # the same is missing of every model
    notes |= dict.fromkeys(note.removeprefix(f"{path.name}: ") for note in missing)
    return {"memory": [row.document() for row in rows]}


def _tensors(reference: Path, path: Path) -> Mapping[str, Any]:
    found = tensor_errors(reference, path)
    return {"tensor_errors": [error.document() for error in found]} if found else {}


def _speed(path: Path, costs: Costs) -> Mapping[str, Any]:
    return {"speed": [measure_speed(path, n_threads=costs.threads, rpc=costs.rpc).document()]}
