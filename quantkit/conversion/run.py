"""The driver: run a plan from the lock to the final names, whatever it writes.

Outputs are written under partial names, checked, recorded, and renamed at the end. After a kill at any moment the same
call resumes: a finished layer and a finished tensor are steps of the journal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quantkit.checkpoint.traffic import Traffic
from quantkit.conversion.calibrated_plan import Clock, calibrate_plan
from quantkit.conversion.checks import refuse_changed, source_files, transformers_reference, verify_outputs
from quantkit.conversion.direct_folders import DirectFolders, write_direct_folders
from quantkit.conversion.gguf_pass import forget_lost, run_pass
from quantkit.conversion.projector import Projector, record_projectors, write_projectors
from quantkit.conversion.record import write_records
from quantkit.conversion.type_choice import TypeChoice
from quantkit.conversion.work import name_output, open_work
from quantkit.forward.devices import peak_memory as device_peak
from quantkit.journal import Journal
from quantkit.llamacpp.session import require_llama_cpp
from quantkit.machine import peak_memory
from quantkit.outputs.plan import ConversionPlan, final_paths
from quantkit.progress import SILENT, Progress
from quantkit.quant.column_runs import failure
from quantkit.quant.neurons import Moved
from quantkit.verify import Verified


@dataclass(frozen=True)
class Result:
    """A finished conversion. `seconds`: wall time by stage; `quantize_seconds`: CPU time by GGUF label.

    `peak_memory` in bytes; `gpu_peak_memory`: of the GPU that calibrated, as torch reserved it. `starved`: by layer,
    the experts that received few tokens. `resumed_layers` and `resumed_tensors`: steps that an earlier run finished.
    `choice`: the types of a file of a given size. `traffic`: what was received of a streamed source. `rounded`,
    `moved`: see `Calibration`. Outputs that failed a check are named `NAME.failed`. `projectors`: those of llama.cpp's
    converter. `not_compiled`: see `column_runs.failure`.
    """

    plan: ConversionPlan
    outputs: tuple[Verified, ...]
    seconds: Mapping[str, float]
    quantize_seconds: Mapping[str, float]
    peak_memory: int
    starved: Mapping[int, Sequence[str]]
    unseen_experts: Mapping[str, int]
    resumed_layers: int = 0
    resumed_tensors: int = 0
    choice: TypeChoice | None = None
    traffic: Traffic | None = None
    rounded: Mapping[str, Sequence[str]] = field(default_factory=dict)
    moved: Mapping[str, Moved] = field(default_factory=dict)
    projectors: tuple[Projector, ...] = ()
    gpu_peak_memory: int | None = None
    not_compiled: str | None = None

    @property
    def failed(self) -> tuple[Verified, ...]:
        """The outputs that failed a check."""
        return tuple(output for output in self.outputs if output.failed)


def run(
    plan: ConversionPlan,
    *,
    force: bool = False,
    logits: bool | None = None,
    transformers_python: Path | None = None,
    progress: Progress = SILENT,
) -> Result:
    """Run a plan to its end, or resume it where an earlier run of the same plan stopped.

    `force` overwrites outputs and discards an unfinished run of other options. `logits`: compare each output's logits
    with the source's; None decides by the model's size and the memory. `transformers_python`: an interpreter with
    torch and transformers, whose logits GGUF files are compared with.

    Raises:
        UsageError: `transformers_python` is given, but the source is a GGUF or the Python does not exist.
        OutputError: the folder is not writable or too small, or an output exists (see `force`).
        CalibrationError: the text or the checkpoint gives statistics that cannot be used.
        CheckpointError, UnsupportedError: the source is damaged, or does not fit a type.
        ReadError: the source could not be read this time; the finished steps are kept.
        MissingExtraError: `logits` of a GGUF are requested, and llama.cpp is not installed.
    """
    if logits and plan.gguf is not None:
        require_llama_cpp()
    reference = transformers_reference(plan, transformers_python)
    streamed = plan.checkpoint.streamed if plan.checkpoint is not None else None
    with open_work(plan, force=force) as journal:
        clock = Clock()
        source = source_files(plan)
        # first, because the converter may not know the tower
        projectors = write_projectors(plan.bridged, journal, progress)
        resumed = forget_lost(plan.gguf, journal) if plan.gguf is not None else 0
        calibrated = calibrate_plan(plan, journal, clock, progress)
        plan, calibration = calibrated.plan, calibrated.calibration
        direct = DirectFolders({}, 0)
        if plan.direct_folders:
            direct = write_direct_folders(plan, journal, progress)
            clock.end("folders")
        resumed += forget_lost(plan.projectors, journal) if plan.projectors is not None else 0
        quantize_seconds = _pass(plan, journal, progress)
        if plan.gguf is not None:
            clock.end("pass")
        outputs = verify_outputs(plan, calibration, direct, logits, reference, progress)
        if any(output.failed for output in outputs):
            refuse_changed(source, source_files(plan))
        clock.end("verify")
        write_records(plan, outputs, calibration, calibrated.rounded, clock.seconds, calibrated.choice)
        record_projectors(plan.bridged, projectors)
        journal.start_finishing({name: digest for item in outputs for name, digest in item.sha256.items()})
        _name_outputs(outputs, projectors)
    layers = enumerate(calibration.layers if calibration else ())
    return Result(
        plan=plan,
        outputs=outputs,
        seconds=clock.seconds,
        quantize_seconds=quantize_seconds,
        peak_memory=peak_memory(),
        starved={number: record["starved"] for number, record in layers if record["starved"]},
        unseen_experts=calibrated.unseen,
        resumed_layers=calibration.resumed if calibration else 0,
        resumed_tensors=resumed + direct.resumed,
        choice=calibrated.choice,
        traffic=streamed.traffic if streamed is not None else None,
        rounded=calibrated.rounded,
        moved=calibration.moved if calibration else {},
        projectors=projectors,
        gpu_peak_memory=device_peak(plan.calibration.device) if plan.calibration is not None else None,
        not_compiled=failure(),
    )


def _pass(plan: ConversionPlan, journal: Journal, progress: Progress) -> dict[str, float]:
    """Quantize to every GGUF type, then the projectors; the seconds of each type."""
    if plan.gguf is None:
        return {}
    forget_lost(plan.gguf, journal)
    seconds = run_pass(plan.gguf, journal, progress)
    return seconds | run_pass(plan.projectors, journal, progress) if plan.projectors is not None else seconds


def _name_outputs(outputs: Sequence[Verified], projectors: Sequence[Projector]) -> None:
    """Give each output its final name, or the name of a failed one."""
    for item in outputs:
        for path in final_paths(item.output):
            name_output(path, failed=bool(item.failed))
    for projector in projectors:
        name_output(projector.path, failed=False)
