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
from quantkit.machine import peak_memory
from quantkit.outputs.plan import ConversionPlan, final_paths
from quantkit.progress import SILENT, Progress
from quantkit.verify import Verified


@dataclass(frozen=True)
class Result:
    """A finished conversion. `seconds`: wall time by stage; `quantize_seconds`: CPU time by GGUF label.

    `peak_memory` in bytes. `starved`: by layer, the experts that received few tokens. `resumed_layers` and
    `resumed_tensors`: steps that an earlier run finished. `choice`: the types of a file of a given size. `traffic`:
    what was received of a streamed source. `rounded`: see `Calibration`. Outputs that failed a check are named
    `NAME.failed`. `projectors`: those of llama.cpp's converter.
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
    projectors: tuple[Projector, ...] = ()

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
    """
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
        quantize_seconds: dict[str, float] = {}
        if plan.gguf is not None:
            forget_lost(plan.gguf, journal)
            quantize_seconds = run_pass(plan.gguf, journal, progress)
            if plan.projectors is not None:
                resumed += forget_lost(plan.projectors, journal)
                quantize_seconds |= run_pass(plan.projectors, journal, progress)
            clock.end("pass")
        outputs = verify_outputs(plan, calibration, direct, logits, reference, progress)
        if any(output.failed for output in outputs):
            refuse_changed(source, source_files(plan))
        clock.end("verify")
        write_records(plan, outputs, calibration, calibrated.rounded, clock.seconds, calibrated.choice)
        record_projectors(plan.bridged, projectors)
        journal.start_finishing({name: digest for item in outputs for name, digest in item.sha256.items()})
        for item in outputs:
            for path in final_paths(item.output):
                name_output(path, failed=bool(item.failed))
        for projector in projectors:
            name_output(projector.path, failed=False)
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
        projectors=projectors,
    )


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
    datasets = [samples.name]
    write_imatrix(partial_path(output.path), sums, counts, datasets=datasets, chunk_size=chunk_size, chunks=chunks)
    unseen = {name: int((count == 0).sum()) for name, count in counts.items()}
    return {name: number for name, number in unseen.items() if number}


def _source_files(plan: ConversionPlan) -> dict[Path, tuple[int, int]]:
    """Size and time of change of every file of the source."""
    model = plan.gguf.model if plan.gguf else None
    paths = list(model.weight_files) if model else []
    folder = plan.checkpoint.folder if plan.checkpoint else model.folder if model else None
    if folder is not None and folder.is_dir():
        paths += folder.iterdir()
    states = {path: path.stat() for path in paths if path.is_file()}
    return {path: (state.st_size, state.st_mtime_ns) for path, state in states.items()}


def _refuse_changed(before: Mapping[Path, tuple[int, int]], after: Mapping[Path, tuple[int, int]]) -> None:
    """Raise ReadError if a file of the source changed: a failed check then proves nothing about the output."""
    changed = [path.name for path in before if before[path] != after.get(path)]
    if changed:
        raise ReadError(
            f"{changed[0]} of the source changed while the command ran; restore it and run the same command again, or"
            " add --force to start over"
        )


def _reference(plan: ConversionPlan, python: Path | None) -> TransformersLogits | None:
    """The logits of transformers that GGUF files are compared with; None without `python`."""
    if python is None:
        return None
    folder = plan.checkpoint.folder if plan.checkpoint else plan.gguf.model.folder if plan.gguf else None
    if plan.gguf is None or folder is None:
        raise UsageError("--reference transformers compares GGUF types of a checkpoint; leave it out here")
    return TransformersLogits(folder, python, adapted=bool(plan.origin.get("adapters")))


def _verify(
    plan: ConversionPlan,
    calibration: Calibration | None,
    direct: DirectFolders,
    logits: bool | None,
    reference: TransformersLogits | None,
    progress: Progress,
) -> tuple[Verified, ...]:
    """Reload and check every output, still under its partial name."""
    progress.start("checking", len(plan.outputs))
    probe_ids = plan.gguf.model.probe_ids if plan.gguf else None
    source = SourceLogits(plan.checkpoint, probe_ids) if plan.checkpoint else None
    streamed = plan.checkpoint.streamed if plan.checkpoint else None
    if logits is None and streamed is not None and streamed.total > streamed.memory:
        logits = False  # they read the whole source again
    outputs: list[Verified] = []
    if calibration is not None and plan.calibration is not None:
        for folder in plan.calibrated_folders:
            method = folder.request.method
            records = [calibration.outside[method], *(layer[method] for layer in calibration.layers)]
            hashes = {name: digest for record in records for name, digest in record["sha256"].items()}
            errors = {name: error for record in records[1:] for name, error in record["errors"].items()}
            native, partial = plan.calibration.native, partial_path(folder.folder)
            outputs.append(verify_folder(partial, folder, native, hashes, errors=errors, logits=logits, source=source))
            progress.advance(1, folder.label)
    for folder in plan.direct_folders:
        assert plan.native is not None
        written, partial = direct.hashes[folder.request.method], partial_path(folder.folder)
        outputs.append(verify_folder(partial, folder, plan.native, written, logits=logits, source=source))
        progress.advance(1, folder.label)
    if plan.gguf is not None:
        outputs += verify_gguf(plan.gguf, logits=logits, source=source, reference=reference, progress=progress)
        if plan.projectors is not None:
            outputs += verify_projectors(plan.projectors, plan.gguf, logits=logits, progress=progress)
    if plan.imatrix is not None and plan.calibration is not None and calibration is not None:
        outputs.append(verify_imatrix(plan.imatrix, plan.calibration.imatrix(calibration.squares)))
    elif plan.imatrix is not None and plan.callback is not None:
        outputs.append(verify_imatrix(plan.imatrix, plan.callback.imatrix()))
    return tuple(outputs)
