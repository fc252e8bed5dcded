"""What AWQ, GPTQ and convert share: open the source, cut the text, run the stream, tell the result."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from quantkit.checkpoint import Checkpoint, open_checkpoint
from quantkit.cli.calibration_options import Calibrating
from quantkit.cli.output import Out, human_bytes, human_count
from quantkit.conversion.calibrated import Calibrated, Folder, Squares, calibrate
from quantkit.errors import VerificationError
from quantkit.families import check_config
from quantkit.families.base.native import Native
from quantkit.files import free_space
from quantkit.forward.devices import find_device
from quantkit.outputs.calibration import CalibratedPlan, plan_calibrated
from quantkit.outputs.packed_folders import FolderPlan, FolderRequest
from quantkit.texts.samples import load_samples


def folder_command(
    source: str,
    request: FolderRequest,
    asked: Calibrating,
    out: Out,
    *,
    name: str | None,
    output: Path,
    dry_run: bool,
    force: bool,
) -> None:
    """A whole command that writes one folder."""
    with fetch(source, out, offline=asked.offline, headers_only=dry_run) as checkpoint:
        found = plan(checkpoint, [request], asked, out, name=name, output=output)
        if dry_run:
            show_plan(found, out, request.method)
            return
        result = run(found, asked, out, force=force)
    show_result(result, out, request.method)
    raise_failed(result)


def fetch(source: str, out: Out, *, offline: bool, headers_only: bool) -> Checkpoint:
    """Open a checkpoint, with the progress of its download."""
    with out.old_progress("downloading", 1) as ticker:

        def show(label: str, done: int, total: int) -> None:
            ticker.show(done / max(total, 1), f"downloading {label}")

        return open_checkpoint(source, offline=offline, headers_only=headers_only, progress=show, judge=check_config)


def plan(
    checkpoint: Checkpoint,
    requests: Sequence[FolderRequest],
    asked: Calibrating,
    out: Out,
    *,
    name: str | None,
    output: Path,
    nearest: bool = False,
) -> CalibratedPlan:
    """What is to be done, announced. `nearest`: see `Native`; what becomes GGUF needs no native architecture."""
    native = Native(checkpoint, nearest=nearest)
    samples = load_samples(
        checkpoint,
        source=asked.text,
        n_samples=asked.samples,
        seq_len=asked.seq_len,
        chat=asked.chat,
        offline=asked.offline,
    )
    found = plan_calibrated(
        native,
        samples,
        requests,
        name=name or checkpoint.name,
        output=output,
        threads=asked.threads or 0,
        max_ram=asked.ram,
        propagate=asked.propagate,
        device=find_device(asked.device),
    )
    for warning in (*samples.warnings, *found.warnings):
        out.warn(warning)
    parameters = sum(tensor.n_params for tensor in checkpoint.tensors.values())
    architecture = (native.config.get("architectures") or ["?"])[0]
    out.note(f"{found.name}: {architecture}, {human_count(parameters)} parameters, {len(found.layers)} layers")
    out.note(
        f"calibrates on {len(samples.tokens)} samples of {samples.tokens.shape[1]} tokens of {samples.name}"
        f"{', chat-templated' if samples.chat else ''}"
    )
    out.note(
        f"needs {human_bytes(found.disk)} of disk ({human_bytes(free_space(output))} free) and about"
        f" {human_bytes(found.memory)} of memory, {found.threads} thread{'s' if found.threads > 1 else ''}"
    )
    return found


def run(
    found: CalibratedPlan,
    asked: Calibrating,
    out: Out,
    *,
    force: bool,
    then: Callable[[Squares], None] = lambda _squares: None,
    others: Sequence[Path] = (),
    others_size: int = 0,
) -> Calibrated:
    """Run the plan under a progress bar; tell which experts saw too few tokens."""
    with out.old_progress("calibrating", len(found.layers)) as ticker:
        result = calibrate(
            found,
            force=force,
            logits=asked.logits,
            progress=ticker.advance,
            stage=ticker.stage,
            then=then,
            others=others,
            others_size=others_size,
        )
    starved = sum(len(experts) for experts in result.starved.values())
    if starved:
        first = next(iter(result.starved))
        out.warn(
            f"{starved} experts were sent few tokens (layer {first}: {', '.join(result.starved[first])}) and learned"
            " from tokens of others too; a longer --calibration text would reach them"
        )
    return result


def raise_failed(result: Calibrated) -> None:
    """Raise VerificationError for the first folder that failed a check."""
    for folder in result.folders:
        if folder.failed:
            raise VerificationError(
                f"{folder.plan.request.label} failed its check of {folder.failed[0].name}: {folder.failed[0].detail};"
                f" the folder is kept as {folder.plan.folder.name}.failed"
            )


def show_plan(found: CalibratedPlan, out: Out, command: str, more: Sequence[dict[str, Any]] = ()) -> None:
    """The answer of a dry run; `more` as in `show_result`."""
    headers = [("format", "left"), ("size", "right"), ("linears", "right"), ("kept", "right"), ("files", "right")]
    rows = [
        [
            _title(folder),
            human_bytes(folder.size),
            str(len(folder.quantized)),
            str(len(folder.kept)),
            str(len(folder.shards)),
        ]
        for folder in found.folders
    ]
    if rows:
        out.table(headers, rows)
    out.say("dry run: nothing was written")
    out.document(
        {
            "command": command,
            "dry_run": True,
            **facts(found),
            "outputs": [*(_planned(each) for each in found.folders), *more],
        }
    )


def show_result(result: Calibrated, out: Out, command: str, more: Sequence[dict[str, Any]] = ()) -> None:
    """The closing table, or the document; `more` are outputs of another kind, told of already."""
    headers = [
        ("format", "left"),
        ("size", "right"),
        ("linears", "right"),
        ("mean error", "right"),
        ("worst error", "right"),
        ("checks", "left"),
    ]
    if result.folders:
        out.table(headers, [_row(folder) for folder in result.folders])
    out.say("")
    for folder in result.folders:
        out.say(str(folder.plan.folder) + (".failed" if folder.failed else ""))
    out.say(
        f"\n{len(result.plan.layers)} layers in {result.seconds['calibrate']:.1f} s, checked in"
        f" {result.seconds['verify']:.1f} s, peak memory {human_bytes(result.peak_memory)}"
    )
    out.say("error: of a linear's output over the calibration text, squared, relative")
    out.document(
        {
            "command": command,
            "dry_run": False,
            **facts(result.plan),
            "outputs": [*(_document(folder) for folder in result.folders), *more],
            "seconds": {name: round(value, 3) for name, value in result.seconds.items()},
            "peak_memory_bytes": result.peak_memory,
            "resumed_layers": result.resumed,
        }
    )


def _row(folder: Folder) -> list[str]:
    errors = list(folder.errors.values())
    passed = sum(check.status == "passed" for check in folder.checks)
    skipped = [check.name for check in folder.checks if check.status == "skipped"]
    return [
        _title(folder.plan),
        human_bytes(folder.plan.size),
        str(len(folder.plan.quantized)),
        f"{sum(errors) / len(errors):.2%}",
        f"{max(errors):.2%}",
        f"FAILED {folder.failed[0].name}"
        if folder.failed
        else f"{passed} passed" + (f", no {' or '.join(skipped)}" if skipped else ""),
    ]


def _title(folder: FolderPlan) -> str:
    grid = folder.request.grid
    return f"{folder.request.label} {grid.bits} bit, group {grid.group}"


def facts(found: CalibratedPlan) -> dict[str, Any]:
    """What a document says of a calibration."""
    samples = found.samples
    return {
        "name": found.name,
        "architecture": (found.native.config.get("architectures") or [None])[0],
        "layers": len(found.layers),
        "calibration": {
            "text": samples.name,
            "sha256": samples.sha256,
            "samples": len(samples.tokens),
            "tokens_per_sample": int(samples.tokens.shape[1]),
        },
        "expected_peak_memory_bytes": found.memory,
        "disk_bytes": found.disk,
        "threads": found.threads,
        "warnings": [*samples.warnings, *found.warnings],
    }


def _planned(folder: FolderPlan) -> dict[str, Any]:
    return {
        "type": folder.request.label,
        "folder": str(folder.folder),
        "bytes": folder.size,
        "bits": folder.request.grid.bits,
        "group_size": folder.request.grid.group,
        "quantized_linears": len(folder.quantized),
        "kept_linears": list(folder.kept),
        "files": [{"name": shard.name, "bytes": shard.size} for shard in folder.shards],
    }


def _document(folder: Folder) -> dict[str, Any]:
    return {
        **_planned(folder.plan),
        "verified": not folder.failed,
        "relative_error": dict(folder.errors),
        "checks": [{"name": check.name, "status": check.status, "detail": check.detail} for check in folder.checks],
    }
