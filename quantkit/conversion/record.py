"""quantkit.json: where each file of a folder came from, how it was made, and what its checks saw.

Format `quantkit-origin` version 1: one entry a file set under `outputs`, keyed by its stem, so that a folder filled by
several commands keeps the history of each.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.errors import OutputError
from quantkit.gguf.kernels import accelerated, library
from quantkit.inspection.record import FILE_NAME, FORMAT, VERSION
from quantkit.outputs.gguf_files import Plan
from quantkit.verify import Verified


def write_origin(
    folder: Path, plan: Plan, verified: Sequence[Verified], seconds: Mapping[str, float], peak_memory: int
) -> None:
    """Add this run's outputs to the folder's quantkit.json, replacing earlier entries of the same name."""
    record_outputs(
        folder,
        {item.output.stem: _entry(plan, item, seconds, peak_memory) for item in verified if not item.failed},
    )


def record_outputs(folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Add entries by stem to the folder's quantkit.json, replacing earlier ones of the same stem."""
    path = folder / FILE_NAME
    record = _load(path)
    record["outputs"].update(entries)
    temporary = path.with_name(f"{FILE_NAME}.partial")
    try:
        temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _load(path: Path) -> dict[str, Any]:
    """The record so far. One that is not understood (damaged, or of a later version) is set aside as `.bak`."""
    fresh: dict[str, Any] = {"format": FORMAT, "version": VERSION, "outputs": {}}
    if not path.exists():
        return fresh
    try:
        record = json.loads(path.read_text("utf-8"))
        if record["format"] == FORMAT and record["version"] == VERSION and isinstance(record["outputs"], dict):
            return dict(record)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    path.replace(path.with_name(f"{FILE_NAME}.bak"))
    return fresh


def _entry(plan: Plan, item: Verified, seconds: Mapping[str, float], peak_memory: int) -> dict[str, Any]:
    request, output = plan.request, item.output
    return {
        "tool": {"name": "quantkit", "version": __version__, "kernels": str(library()), "lanes": accelerated()},
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "origin": dict(plan.model.origin),
        "family": plan.model.family,
        "type": output.type.name,
        "files": {file.name: {"bytes": file.size, "sha256": item.sha256.get(file.name)} for file in output.files},
        "bits_per_weight": round(plan.bits_per_weight(output), 4),
        "parameters": plan.n_elements,
        "type_mix": output.mix,
        "options": {
            "pure": request.mix.pure,
            "leave_output_tensor": request.mix.leave_output,
            "output_type": request.mix.output_type.name if request.mix.output_type is not None else None,
            "embedding_type": request.mix.embedding_type.name if request.mix.embedding_type is not None else None,
            "tensor_types": [[pattern, kind.name] for pattern, kind in request.mix.tensor_types],
            "split_max_size": request.split_max_size,
            "imatrix": (
                {"file": request.imatrix_name, "sha256": request.imatrix.sha256, "datasets": request.imatrix.datasets}
                if request.imatrix
                else None
            ),
        },
        "checks": [{"name": check.name, "status": check.status, "detail": check.detail} for check in item.checks],
        "relative_error": {name: round(error, 6) for name, error in item.errors.items()},
        "relative_error_method": "RMS error over RMS of the source, on sampled rows of each tensor",
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "seconds_cover": [output.type.name for output in plan.outputs],
        "peak_memory_bytes": peak_memory,
        "threads": plan.threads,
        "warnings": list(plan.warnings),
    }
