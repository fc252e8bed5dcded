"""The JSON documents of a conversion: its plan and its result, with one shape of `outputs`."""

from collections.abc import Mapping
from typing import Any

from quantkit.conversion.run import Result
from quantkit.outputs.calibration import ImatrixOutput
from quantkit.outputs.gguf_files import GgufOutput
from quantkit.outputs.packed_folders import FolderPlan
from quantkit.outputs.plan import ConversionPlan, OutputPlan, file_sizes, final_paths, type_name
from quantkit.verify import Verified


def planned_document(plan: ConversionPlan, command: str) -> dict[str, Any]:
    """The document of a dry run of `command`."""
    main = [output for output in plan.outputs if not _is_projector(output)]
    outputs = [_output(plan, output) for output in main]
    for document, output in zip(outputs, main, strict=True):
        if isinstance(output, GgufOutput):
            document["tensors"] = {choice.name: choice.type.name for choice in output.choices}
    projectors = [_projector(output) for output in plan.outputs if _is_projector(output)]
    projector_entry = {"projectors": projectors} if projectors else {}
    return {"command": command, "dry_run": True, **conversion_facts(plan), "outputs": outputs, **projector_entry}


def result_document(result: Result, command: str) -> dict[str, Any]:
    """The document of a finished run of `command`."""
    projectors = [
        _projector(item.output, item.sha256) | {"verified": not item.failed}
        for item in result.outputs
        if _is_projector(item.output)
    ]
    return {
        "command": command,
        "dry_run": False,
        **conversion_facts(result.plan),
        "outputs": [_verified(result, item) for item in result.outputs if not _is_projector(item.output)],
        "seconds": {name: round(value, 3) for name, value in result.seconds.items()},
        "peak_memory_bytes": result.peak_memory,
        **({"gpu_peak_memory_bytes": result.gpu_peak_memory} if result.gpu_peak_memory else {}),
        "resumed_layers": result.resumed_layers,
        "resumed_tensors": result.resumed_tensors,
        "streamed": None
        if result.traffic is None
        else {
            "bytes": result.traffic.bytes,
            "bytes_again": result.traffic.again,
            "requests": result.traffic.requests,
        },
        **({"projectors": projectors} if projectors else {}),
    }


def _is_projector(output: OutputPlan) -> bool:
    return isinstance(output, GgufOutput) and output.projector


def _projector(output: OutputPlan, sha256: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A projector of the document; a file that could not be read back has no hash."""
    assert isinstance(output, GgufOutput)
    (path,) = final_paths(output)
    document = {"file": str(path), "type": output.type.name, "bytes": output.size}
    return document | ({"sha256": sha256[path.name]} if sha256 and path.name in sha256 else {})


def conversion_facts(plan: ConversionPlan) -> dict[str, Any]:
    """What both documents of a conversion hold: the model, the calibration, disk in bytes, memory in bytes."""
    gguf, native, samples = plan.gguf, plan.native, plan.samples
    model = gguf.model if gguf else plan.callback.model if plan.callback else None
    return {
        "name": plan.name,
        "family": model.family if model else None,
        "architecture": (native.config.get("architectures") or [None])[0] if native else None,
        "origin": dict(plan.origin),
        "folder": str(gguf.request.folder if gguf else plan.output),
        "parameters": plan.parameters,
        "layers": native.decoder.n_layers if native else None,
        "calibration": samples and samples.facts(),
        "expected_peak_memory_bytes": plan.peak_memory,
        "disk_bytes": plan.disk,
        "threads": plan.threads,
        "warnings": list(plan.warnings),
    }


def _output(plan: ConversionPlan, output: OutputPlan, sha256: Mapping[str, str] | None = None) -> dict[str, Any]:
    """An output of the document; what its type does not have is left out."""
    bits = plan.bits_per_weight(output)
    document = {
        "type": type_name(output),
        "folder": str(final_paths(output)[0] if isinstance(output, FolderPlan) else output.folder),
        "bytes": output.size,
        "bits_per_weight": None if bits is None else round(bits, 4),
        "files": [
            {"name": name, "bytes": size} | ({} if sha256 is None else {"sha256": sha256.get(name)})
            for name, size in file_sizes(output).items()
        ],
    }
    if isinstance(output, GgufOutput):
        return {**document, "type_mix": output.mix}
    if isinstance(output, ImatrixOutput):
        return {**document, "entries": output.entries}
    grid = output.request.grid
    linears = {"quantized_linears": len(output.quantized), "kept_linears": list(output.kept)}
    return {**document, "bits": grid.bits, "group_size": grid.group, **linears}


def _verified(result: Result, item: Verified) -> dict[str, Any]:
    """An output of the document after the conversion: its checks and errors too."""
    document = _output(result.plan, item.output, item.sha256) | {
        "worst_relative_error": max(item.errors.values(), default=None),
        "logit_correlation": item.logit_correlation,
        "verified": not item.failed,
        "checks": [vars(check) for check in item.checks],
    }
    if isinstance(item.output, GgufOutput):
        document["quantize_cpu_seconds"] = round(result.quantize_seconds.get(item.output.label, 0.0), 3)
        if result.choice is not None and result.plan.gguf and item.output is result.plan.gguf.target_output:
            document["expected_kl_divergence"] = result.choice.expected
    elif isinstance(item.output, ImatrixOutput):
        document["experts_without_tokens"] = dict(result.unseen_experts)
    else:
        document["relative_error"] = dict(item.errors)
    return document
