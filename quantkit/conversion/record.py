"""What quantkit.json says of the outputs of one conversion: their origin, how they were made, and their checks."""

from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.conversion.calibration import Calibration
from quantkit.conversion.gguf_layers import without_feedback
from quantkit.conversion.output_record import OutputRecord, code_facts, record_outputs
from quantkit.conversion.type_choice import TypeChoice
from quantkit.errors import CheckpointError
from quantkit.files import partial_path
from quantkit.inspection.record import FILE_NAME, parse_record
from quantkit.outputs.gguf_files import GgufOutput, GgufPlan
from quantkit.outputs.packed_folders import FolderPlan
from quantkit.outputs.plan import ConversionPlan, OutputPlan, file_sizes, type_name
from quantkit.packed.formats import PointsFormat
from quantkit.quant.feedback import SOLVER_VERSION
from quantkit.quant.neurons import Moved, tensor_of
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
    gguf: dict[str, OutputRecord] = {}
    for item in outputs:
        output = item.output
        if isinstance(output, FolderPlan):
            facts = _folder_facts(plan, output)
            if output.format.calibrated and calibration is not None:
                facts |= _calibrated_facts(plan, output, calibration)
            record_outputs(partial_path(output.folder), {output.folder.name: _record(plan, item, seconds, facts)})
            continue
        if not isinstance(output, GgufOutput) or item.failed:
            continue
        of_file = plan.projectors if output.projector else plan.gguf
        assert of_file is not None
        facts = _gguf_facts(of_file, output)
        if not output.projector and of_file.request.solver == "feedback":
            moved = calibration.moved if calibration is not None else {}
            facts["feedback"] = _feedback_facts(of_file, output, rounded, moved, asymmetric=plan.is_asymmetric)
        if choice is not None and output is of_file.target_output:
            facts["target"] = _target_facts(of_file, output, choice)
        gguf[output.stem] = _record(plan, item, seconds, facts)
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


def _record(
    plan: ConversionPlan, item: Verified, seconds: Mapping[str, float], facts: Mapping[str, Any]
) -> OutputRecord:
    """`seconds` are of the whole conversion."""
    calibrated = not (isinstance(item.output, FolderPlan) and not item.output.format.calibrated)
    sizes = file_sizes(item.output)
    if plan.samples is not None and calibrated:
        facts = {"calibration": plan.samples.record(), **facts}
    return OutputRecord(
        origin=plan.origin,
        type=type_name(item.output),
        files={name: (size, item.sha256.get(name)) for name, size in sizes.items()},
        checks=item.checks,
        seconds=seconds,
        seconds_cover=[output.label for output in plan.outputs],
        error_method=_error_method(item.output),
        errors=item.errors,
        threads=plan.threads,
        warnings=plan.warnings,
        facts=facts,
    )


def _error_method(output: OutputPlan) -> str:
    if isinstance(output, FolderPlan) and output.format.calibrated:
        aim = " that make up for earlier layers" if output.request.follows_rounded else ""
        return (
            f"squared error of the outputs{aim} over the calibration text, over their squares, on sampled rows of each"
            " linear"
        )
    part = "linear" if isinstance(output, FolderPlan) else "tensor"
    return f"RMS error over RMS of the source, on sampled rows of each {part}"


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
    }


def _feedback_facts(
    plan: GgufPlan,
    output: GgufOutput,
    rounded: Mapping[str, Sequence[str]],
    moved: Mapping[str, Moved],
    *,
    asymmetric: bool,
) -> dict[str, Any]:
    reordered = {tensor_of(key) for key, entry in moved.items() if output.label in entry.labels}
    return {
        "damp": HELD_OUT_DAMP,
        "sweeps": plan.request.sweeps,
        "asymmetric": asymmetric,
        "version": SOLVER_VERSION,
        "without_feedback": without_feedback(output, rounded),
        **({"neurons_reordered": sorted(reordered)} if plan.request.reorder else {}),
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
        **code_facts(partial_path(folder.folder), plan.native.config),
    }


def _calibrated_facts(plan: ConversionPlan, folder: FolderPlan, calibration: Calibration) -> dict[str, Any]:
    request = folder.request
    assert plan.calibration is not None
    options = _folder_facts(plan, folder)["options"]
    options["propagate"] = "quantized" if plan.calibration.propagate else "float"
    options["quality"] = "best" if request.follows_rounded else "standard"
    if request.method != request.algorithm_used:
        options["algorithm"] = request.algorithm_used
    if isinstance(folder.format, PointsFormat) and not request.feeds_errors_back:
        options |= {"algorithm": "nearest"}
    elif request.algorithm_used == "gptq":
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
        **{name: table for name, table in tables.items() if table or name.startswith("experts")},
    }
