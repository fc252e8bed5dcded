"""quantkit.json of an AWQ or GPTQ folder: where it came from, what it was calibrated on, what each linear lost."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.conversion.record import record_outputs
from quantkit.machine import peak_memory
from quantkit.outputs.calibration import CalibratedPlan
from quantkit.outputs.packed_folders import FolderPlan
from quantkit.packed.writer import partial_folder
from quantkit.verify.check import Check

_PIECE = 1 << 22


def write_folder_origin(
    plan: CalibratedPlan,
    folder: FolderPlan,
    checks: Sequence[Check],
    errors: Mapping[str, float],
    notes: Mapping[int, Mapping[str, Any]],
    seconds: Mapping[str, float],
) -> None:
    """Write quantkit.json into the folder, which still has its partial name.

    `errors`: each linear's; `notes`: what the journal keeps of each layer. Raises OutputError.
    """
    request, checkpoint = folder.request, plan.native.checkpoint
    path = partial_folder(folder.folder)
    tokens = {f"layer {number}": dict(note["tokens"]) for number, note in notes.items() if note["tokens"]}
    starved = {f"layer {number}": list(note["starved"]) for number, note in notes.items() if note["starved"]}
    damping = {
        f"layer {number}": note["damping"][request.method]
        for number, note in notes.items()
        if any(damp != request.damp for damp in note["damping"].get(request.method, {}).values())
    }
    entry = {
        "tool": {"name": "quantkit", "version": __version__},
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "origin": {
            "source": checkpoint.source if checkpoint.repo_id else checkpoint.name,
            "revision": checkpoint.revision,
            "header_sha256": dict(checkpoint.header_sha256),
        },
        "architecture": (plan.native.config.get("architectures") or [None])[0],
        "type": request.label,
        "files": {shard.name: {"bytes": shard.size, "sha256": _sha256(path / shard.name)} for shard in folder.shards},
        "options": {
            "bits": request.grid.bits,
            "group_size": request.grid.group,
            "symmetric": request.grid.symmetric,
            "skip": list(request.skip),
            "dtype": request.dtype,
            "propagate": "quantized" if plan.propagate else "float",
        }
        | (
            {"damp": request.damp, "act_order": request.act_order, "static_groups": request.static_groups}
            if request.method == "gptq"
            else {}
        ),
        "calibration": plan.samples.record(),
        "quantized_linears": len(folder.quantized),
        "kept_linears": list(folder.kept),
        "checks": [{"name": check.name, "status": check.status, "detail": check.detail} for check in checks],
        "relative_error": dict(errors),
        "relative_error_method": "squared error of the outputs over the calibration text, over their squares, on"
        " sampled rows of each linear",
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_memory_bytes": peak_memory(),
        "threads": plan.threads,
    }
    if tokens:
        entry["tokens_per_expert"] = tokens
        entry["experts_that_learned_from_others_tokens"] = starved
    if damping:
        entry["damping_raised"] = damping
    record_outputs(path, {folder.folder.name: entry})


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
