"""The calibration of a plan: its statistics, the types of a file of a given size, the importance matrix."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from quantkit.conversion.calibration import Calibration, calibrate, survey
from quantkit.conversion.callback import calibrate_by_llama, round_by_llama
from quantkit.conversion.layer_outputs import LayerOutputs
from quantkit.conversion.type_choice import TypeChoice, choose_target_types, has_chosen_types
from quantkit.files import partial_path
from quantkit.imatrix.file import write_imatrix
from quantkit.imatrix.names import collect_imatrix
from quantkit.journal import Journal
from quantkit.outputs.calibration import CalibrationPlan, ImatrixOutput, plan_imatrix
from quantkit.outputs.callback import CallbackPlan, imatrix_arrays
from quantkit.outputs.gguf_files import GgufPlan
from quantkit.outputs.plan import ConversionPlan
from quantkit.progress import Progress
from quantkit.texts.samples import Samples


class Clock:
    """Wall time in seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    def end(self, stage: str) -> None:
        """The stage took the time since the end of the one before."""
        now = time.monotonic()
        self.seconds[stage] = now - self._began
        self._began = now


@dataclass(frozen=True)
class Calibrated:
    """A plan with the values of its calibration.

    `calibration`: None if llama.cpp calibrates, or nothing does. `choice`: the types of a file of a given size.
    `unseen`: experts without tokens, by tensor. `rounded`: see `Calibration`.
    """

    plan: ConversionPlan
    calibration: Calibration | None = None
    choice: TypeChoice | None = None
    unseen: Mapping[str, int] = field(default_factory=dict)
    rounded: Mapping[str, Sequence[str]] = field(default_factory=dict)


def calibrate_plan(plan: ConversionPlan, journal: Journal, clock: Clock, progress: Progress) -> Calibrated:
    """Calibrate if an output needs it, and write what a streamed source gives on the way.

    Raises:
        CalibrationError: the text or the checkpoint gives statistics that cannot be used.
        OutputError: a file cannot be written.
    """
    if plan.calibration is not None:
        return _by_forward(plan, plan.calibration, journal, clock, progress)
    if plan.callback is not None:
        return _by_llama(plan, plan.callback, journal, clock, progress)
    others = _layer_outputs(plan, journal)
    if others is not None and plan.direct_folders:
        others.write_all(journal, progress)
    return Calibrated(plan)


def _layer_outputs(plan: ConversionPlan, journal: Journal) -> LayerOutputs | None:
    """The outputs that are written layer by layer because the source is streamed."""
    if plan.checkpoint is None or plan.checkpoint.streamed is None:
        return None
    return LayerOutputs(plan, plan.checkpoint, plan.checkpoint.streamed, journal)


def _by_forward(
    plan: ConversionPlan, inputs: CalibrationPlan, journal: Journal, clock: Clock, progress: Progress
) -> Calibrated:
    choice, unseen = None, {}
    if plan.gguf is not None and plan.gguf.request.target and plan.gguf.request.solver == "feedback":
        choice = _choose_first(plan, plan.gguf, inputs, progress)
        plan = replace(plan, gguf=plan.gguf.with_types(choice.types))
        clock.end("choose types")
    calibration = calibrate(plan, inputs, journal, progress, _layer_outputs(plan, journal))
    clock.end("calibrate")
    if plan.imatrix is not None:
        sums, counts = collect_imatrix(calibration.squares, inputs.imatrix_sources, inputs.imatrix_columns)
        unseen = _write_imatrix(plan.imatrix, inputs.samples, sums, counts)
    if plan.gguf is not None and plan.gguf.request.calibrate:
        gguf = plan.gguf.with_imatrix(inputs.imatrix(calibration.squares))
        if gguf.request.target is not None and choice is None:
            choice = choose_target_types(plan, gguf, progress)
            gguf = gguf.with_types(choice.types)
            clock.end("choose types")
        if gguf.request.reorder:
            gguf = gguf.with_reordered({label for entry in calibration.moved.values() for label in entry.labels})
        plan = replace(plan, gguf=gguf)
    return Calibrated(plan, calibration, choice, unseen, calibration.rounded)


def _by_llama(
    plan: ConversionPlan, callback: CallbackPlan, journal: Journal, clock: Clock, progress: Progress
) -> Calibrated:
    plan, unseen = _apply_callback(plan, callback, progress)
    rounded: Mapping[str, Sequence[str]] = {}
    if plan.callback is not None and plan.gguf is not None and plan.gguf.request.solver == "feedback":
        rounded = round_by_llama(plan, plan.callback, journal, progress)
    clock.end("calibrate")
    return Calibrated(plan, unseen=unseen, rounded=rounded)


def _choose_first(plan: ConversionPlan, gguf: GgufPlan, calibration: CalibrationPlan, progress: Progress) -> TypeChoice:
    """The types of a file of a given size before the calibration, which rounds to them."""
    if not has_chosen_types(plan):
        gguf = gguf.with_imatrix(calibration.imatrix(survey(plan, calibration, progress)))
    return choose_target_types(plan, gguf, progress)


def _apply_callback(
    plan: ConversionPlan, callback: CallbackPlan, progress: Progress
) -> tuple[ConversionPlan, dict[str, int]]:
    """Calibrate by llama.cpp: the plan with the values of the importance matrix, and experts without tokens."""
    sums = calibrate_by_llama(plan, callback, progress)
    callback = replace(callback, sums=sums)
    imatrix, unseen = callback.imatrix(), {}
    if plan.imatrix is not None:
        matrices = {name: len(entry.sums) for name, entry in sums.items()}
        output = plan_imatrix(plan.imatrix.path, imatrix, matrices)
        plan = replace(plan, imatrix=output)
        unseen = _write_imatrix(output, callback.samples, *imatrix_arrays(sums))
    if plan.gguf is not None and plan.gguf.request.calibrate:
        plan = replace(plan, gguf=plan.gguf.with_imatrix(imatrix))
    return replace(plan, callback=callback), unseen


def _write_imatrix(
    output: ImatrixOutput,
    samples: Samples,
    sums: Mapping[str, NDArray[np.float32]],
    counts: Mapping[str, NDArray[np.float32]],
) -> dict[str, int]:
    """Write the importance matrix; the number of experts without tokens, by tensor."""
    chunks, chunk_size = samples.tokens.shape
    file, names = partial_path(output.path), samples.names
    write_imatrix(file, sums, counts, datasets=names, chunk_size=chunk_size, chunks=chunks)
    unseen = {name: int((count == 0).sum()) for name, count in counts.items()}
    return {name: number for name, number in unseen.items() if number}
