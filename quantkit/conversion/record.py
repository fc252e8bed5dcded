"""quantkit.json: the origin of the files in a folder, how they were made, and the results of their checks.

Format `quantkit-origin` version 1: an entry for each output under `outputs`, by the stem of its files or the name of
its folder. Several commands that write into one folder keep each other's entries.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.conversion.calibration import Calibration
from quantkit.conversion.gguf_layers import without_feedback
from quantkit.conversion.type_choice import TypeChoice
from quantkit.errors import CheckpointError
from quantkit.files import partial_path, write_atomically
from quantkit.gguf.kernels import accelerated, library
from quantkit.inspection.record import FILE_NAME, FORMAT, VERSION, parse_record
from quantkit.machine import peak_memory
from quantkit.outputs.gguf_files import GgufOutput, GgufPlan
from quantkit.outputs.packed_folders import FolderPlan
from quantkit.outputs.plan import ConversionPlan, file_sizes, type_name
from quantkit.quant.feedback import SOLVER_VERSION
from quantkit.verify import Verified

HELD_OUT_DAMP = "chosen on held-out samples"
"""The damping and shrinkage of each input, see `quant/held_out.py`."""


def write_records(
    plan: ConversionPlan,
    outputs: Sequence[Verified],
    calibration: Calibration | None,
    rounded: Mapping[str, Sequence[str]],
    seconds: Mapping[str, float],
    choice: TypeChoice | None = None,
) -> None:
    """Write quantkit.json into every folder of outputs, packed folders still under their partial names.

    `rounded`: see `Calibration`.

    Raises OutputError.
    """
    gguf: dict[str, dict[str, Any]] = {}
    for item in outputs:
        output = item.output
        if isinstance(output, FolderPlan):
            own = _folder_facts(plan, output)
            if output.format.calibrated and calibration is not None:
                own |= _calibrated_facts(plan, output, calibration)
            record_outputs(partial_path(output.folder), {output.folder.name: _entry(plan, item, seconds) | own})
        elif isinstance(output, GgufOutput) and output.projector and plan.projectors is not None and not item.failed:
            gguf[output.stem] = _entry(plan, item, seconds) | _gguf_facts(plan.projectors, output)
        elif isinstance(output, GgufOutput) and plan.gguf is not None and not item.failed:
            gguf[output.stem] = _entry(plan, item, seconds) | _gguf_facts(plan.gguf, output)
            if plan.gguf.request.solver == "feedback":
                gguf[output.stem]["feedback"] = _feedback_facts(plan.gguf, output, rounded)
            if choice is not None and output is plan.gguf.target_output:
                gguf[output.stem]["target"] = _target_facts(plan.gguf, output, choice)
    if plan.gguf is not None:
        record_outputs(plan.gguf.request.folder, gguf)


def damaged_records(plan: ConversionPlan) -> list[str]:
    """What is wrong with quantkit.json files that the run will add entries to; it renames them to `.bak`."""
    path = plan.gguf.request.folder / FILE_NAME if plan.gguf is not None else None
    if path is None or not path.exists():
        return []
    try:
        parse_record(path)
    except CheckpointError as error:
        return [str(error)]
    return []


def record_outputs(folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Add entries to the folder's quantkit.json; they replace those of the same name. Raises OutputError."""
    record = _load(folder / FILE_NAME)
    record["outputs"].update(entries)
    write_atomically(folder / FILE_NAME, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _load(path: Path) -> dict[str, Any]:
    """The present record. A damaged one, or one of another version, is renamed to `.bak`; the plan warns about it."""
    if path.exists():
        try:
            return parse_record(path)
        except CheckpointError:
            path.replace(path.with_name(f"{FILE_NAME}.bak"))
    return {"format": FORMAT, "version": VERSION, "outputs": {}}


def _entry(plan: ConversionPlan, item: Verified, seconds: Mapping[str, float]) -> dict[str, Any]:
    """What every output records. `seconds` are of the whole conversion, which `seconds_cover` lists."""
    calibrated = not (isinstance(item.output, FolderPlan) and not item.output.format.calibrated)
    entry = {
        "tool": {"name": "quantkit", "version": __version__, "kernels": str(library()), "c_kernels": accelerated()},
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "origin": dict(plan.origin),
        "type": type_name(item.output),
        "files": {
            name: {"bytes": size, "sha256": item.sha256.get(name)} for name, size in file_sizes(item.output).items()
        },
        "checks": [vars(check) for check in item.checks],
        "relative_error": {name: round(error, 6) for name, error in item.errors.items()},
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "seconds_cover": [output.label for output in plan.outputs],
        "peak_memory_bytes": peak_memory(),
        "threads": plan.threads,
        "warnings": list(plan.warnings),
    }
    if plan.samples is None or not calibrated:
        return entry
    return entry | {"calibration": plan.samples.record()}


def _gguf_facts(plan: GgufPlan, output: GgufOutput) -> dict[str, Any]:
    request, mix = plan.request, plan.request.mix
    imatrix = request.imatrix and {
        "file": request.imatrix_name,
        "sha256": request.imatrix.sha256,
        "datasets": request.imatrix.datasets,
    }
    return {
        "family": plan.model.family,
        "bits_per_weight": round(plan.bits_per_weight(output), 4),
        "parameters": plan.n_elements,
        "type_mix": output.mix,
        "options": {
            "pure": mix.pure,
            "leave_output_tensor": mix.leave_output,
            "output_type": mix.output_type.name if mix.output_type is not None else None,
            "embedding_type": mix.embedding_type.name if mix.embedding_type is not None else None,
            "tensor_types": [[pattern, kind.name] for pattern, kind in mix.tensor_types],
            "split_max_size": request.split_max_size,
            "imatrix": imatrix,
            "solver": request.solver,
        },
        "relative_error_method": "RMS error over RMS of the source, on sampled rows of each tensor",
    }


def _feedback_facts(plan: GgufPlan, output: GgufOutput, rounded: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    return {
        "damp": HELD_OUT_DAMP,
        "sweeps": plan.request.sweeps,
        "version": SOLVER_VERSION,
        "without_feedback": without_feedback(output, rounded),
    }


def _target_facts(plan: GgufPlan, output: GgufOutput, choice: TypeChoice) -> dict[str, Any]:
    target = plan.request.target
    assert target is not None
    return {
        "bytes": target.size,
        "bits_per_weight": target.bits,
        "expected_kl_divergence": choice.expected,
        "kl_divergence_of_groups": dict(choice.divergence),
        "types": {item.name: item.type.name for item in output.choices},
    }


def _folder_facts(plan: ConversionPlan, folder: FolderPlan) -> dict[str, Any]:
    request = folder.request
    assert plan.native is not None
    options: dict[str, Any] = {"bits": request.grid.bits, "group_size": request.grid.group}
    if folder.format.calibrated:
        options["symmetric"] = request.grid.symmetric
    return {
        "architecture": (plan.native.config.get("architectures") or [None])[0],
        "options": options | {"skip": list(request.skip), "dtype": request.dtype},
        "quantized_linears": len(folder.quantized),
        "kept_linears": list(folder.kept),
        "relative_error_method": "RMS error over RMS of the source, on sampled rows of each linear",
    }


def _calibrated_facts(plan: ConversionPlan, folder: FolderPlan, calibration: Calibration) -> dict[str, Any]:
    request = folder.request
    assert plan.calibration is not None
    options = _folder_facts(plan, folder)["options"]
    options["propagate"] = "quantized" if plan.calibration.propagate else "float"
    if request.method != request.algorithm_used:
        options["algorithm"] = request.algorithm_used
    if request.algorithm_used == "gptq":
        damp = HELD_OUT_DAMP if request.damp is None else request.damp
        options |= {"damp": damp, "act_order": request.act_order, "static_groups": request.static_groups}
    else:
        options["rounding"] = request.rounding
    layers = {f"layer {number}": record for number, record in enumerate(calibration.layers)}
    raised = {name: layer[request.method]["damping"] for name, layer in layers.items()}
    tables = {
        "tokens_per_expert": {name: layer["tokens"] for name, layer in layers.items() if layer["tokens"]},
        "damping_raised": {name: damping for name, damping in raised.items() if damping},
    }
    if tables["tokens_per_expert"]:
        starved = {name: layer["starved"] for name, layer in layers.items() if layer["starved"]}
        tables["experts_that_learned_from_others_tokens"] = starved
    return {
        "options": options,
        "relative_error_method": "squared error of the outputs over the calibration text, over their squares, on"
        " sampled rows of each linear",
        **{name: table for name, table in tables.items() if table or name.startswith("experts")},
    }
