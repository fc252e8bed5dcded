"""The checks of a run: every output is reloaded under its partial name, and the source must not have changed."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from quantkit.conversion.calibration import Calibration
from quantkit.conversion.direct_folders import DirectFolders
from quantkit.errors import ReadError, UsageError
from quantkit.files import partial_path, sync
from quantkit.outputs.plan import ConversionPlan
from quantkit.progress import Progress
from quantkit.verify import Verified, verify_gguf
from quantkit.verify.imatrix import verify_imatrix
from quantkit.verify.projector import verify_projectors
from quantkit.verify.quantized import Written, verify_folder
from quantkit.verify.source_logits import SourceLogits
from quantkit.verify.transformers_logits import TransformersLogits


def source_files(plan: ConversionPlan) -> dict[Path, tuple[int, int]]:
    """Size and time of change of every file of the source."""
    model = plan.gguf.model if plan.gguf else None
    paths = list(model.weight_files) if model else []
    folder = plan.checkpoint.folder if plan.checkpoint else model.folder if model else None
    if folder is not None and folder.is_dir():
        paths += folder.iterdir()
    states = {path: path.stat() for path in paths if path.is_file()}
    return {path: (state.st_size, state.st_mtime_ns) for path, state in states.items()}


def refuse_changed(before: Mapping[Path, tuple[int, int]], after: Mapping[Path, tuple[int, int]]) -> None:
    """Raise ReadError if a file of the source changed: a failed check then proves nothing about the output."""
    changed = [path.name for path in before if before[path] != after.get(path)]
    if changed:
        raise ReadError(
            f"{changed[0]} of the source changed while the command ran; restore it and run the same command again, or"
            " add --force to start over"
        )


def transformers_reference(plan: ConversionPlan, python: Path | None) -> TransformersLogits | None:
    """The logits of transformers that GGUF files are compared with; None without `python`."""
    if python is None:
        return None
    folder = plan.checkpoint.folder if plan.checkpoint else plan.gguf.model.folder if plan.gguf else None
    if plan.gguf is None or folder is None:
        raise UsageError("--reference transformers compares GGUF types of a checkpoint; leave it out here")
    return TransformersLogits(folder, python, adapted=bool(plan.origin.get("adapters")))


def verify_outputs(
    plan: ConversionPlan,
    calibration: Calibration | None,
    direct: DirectFolders,
    logits: bool | None,
    reference: TransformersLogits | None,
    progress: Progress,
) -> tuple[Verified, ...]:
    """Reload and check every output, still under its partial name, while the disk writes the same bytes."""
    with ThreadPoolExecutor(1, thread_name_prefix="flush") as flusher:
        weights = [
            partial_path(folder.folder) / shard.name for folder in plan.direct_folders for shard in folder.shards
        ]
        flushed = [flusher.submit(sync, path) for path in (*map(partial_path, plan.paths), *weights)]
        outputs = _verify(plan, calibration, direct, logits, reference, progress)
        for future in flushed:
            future.result()
    return outputs


def _verify(
    plan: ConversionPlan,
    calibration: Calibration | None,
    direct: DirectFolders,
    logits: bool | None,
    reference: TransformersLogits | None,
    progress: Progress,
) -> tuple[Verified, ...]:
    progress.start("checking", len(plan.outputs))
    probe_ids = plan.gguf.model.probe_ids if plan.gguf else None
    source = SourceLogits(plan.checkpoint, probe_ids) if plan.checkpoint else None
    streamed = plan.checkpoint.streamed if plan.checkpoint else None
    if logits is None and streamed is not None and streamed.total > streamed.memory:
        logits = False  # they read the whole source again
    outputs = _verify_calibrated(plan, calibration, logits, source, progress) if calibration is not None else []
    for folder in plan.direct_folders:
        assert plan.native is not None
        written, partial = Written(direct.hashes[folder.request.method]), partial_path(folder.folder)
        outputs.append(verify_folder(partial, folder, plan.native, written, logits=logits, source=source))
        progress.advance(1, folder.label)
    if plan.gguf is not None:
        moved = calibration.moved if calibration is not None else {}
        outputs += verify_gguf(
            plan.gguf, logits=logits, source=source, reference=reference, moved=moved, progress=progress
        )
        if plan.projectors is not None:
            outputs += verify_projectors(plan.projectors, plan.gguf, logits=logits, progress=progress)
    if plan.imatrix is not None and plan.calibration is not None and calibration is not None:
        outputs.append(verify_imatrix(plan.imatrix, plan.calibration.imatrix(calibration.squares)))
    elif plan.imatrix is not None and plan.callback is not None:
        outputs.append(verify_imatrix(plan.imatrix, plan.callback.imatrix()))
    return tuple(outputs)


def _verify_calibrated(
    plan: ConversionPlan,
    calibration: Calibration,
    logits: bool | None,
    source: SourceLogits | None,
    progress: Progress,
) -> list[Verified]:
    """The folders that the calibration wrote, by the hashes and errors that the journal has of each layer."""
    outputs: list[Verified] = []
    assert plan.calibration is not None
    native = plan.calibration.native
    for folder in plan.calibrated_folders:
        method = folder.request.method
        records = [calibration.outside[method], *(layer[method] for layer in calibration.layers)]
        hashes = {name: digest for record in records for name, digest in record["sha256"].items()}
        errors = {name: error for record in records[1:] for name, error in record["errors"].items()}
        written, partial = Written(hashes, errors), partial_path(folder.folder)
        outputs.append(verify_folder(partial, folder, native, written, logits=logits, source=source))
        progress.advance(1, folder.label)
    return outputs
