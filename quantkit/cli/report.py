"""What a conversion tells the user: before it, after it, and as one JSON document."""

from collections.abc import Sequence
from typing import Any

from quantkit.cli.output import Out, human_bytes, human_count
from quantkit.conversion.conversion import Result
from quantkit.errors import VerificationError
from quantkit.files import free_space
from quantkit.outputs.gguf_files import Output, Plan
from quantkit.verify import Check, Verified


def announce(plan: Plan, out: Out) -> None:
    model = plan.model
    kinds = "/".join(sorted({tensor.type.name.lower() for tensor in model.tensors if len(tensor.shape) > 1}))
    count = human_count(plan.n_elements)
    out.note(f"{model.name}: {model.family}, {count} parameters, {len(model.tensors)} tensors, {kinds}")
    threads = f"{plan.threads} thread{'s' if plan.threads > 1 else ''}"
    out.note(
        f"needs {human_bytes(plan.disk)} of disk ({human_bytes(free_space(plan.request.folder))} free) and about"
        f" {human_bytes(plan.peak_memory)} of memory, {threads}"
    )


def _mix_text(output: Output) -> str:
    return " ".join(f"{count}x{kind.lower()}" for kind, count in sorted(output.mix.items(), key=lambda item: -item[1]))


def show_plan(plan: Plan, out: Out) -> None:
    show_plan_table(plan, out)
    out.say("dry run: nothing was written")
    out.document({"command": "gguf", "dry_run": True, **_model_facts(plan), "outputs": planned_documents(plan)})


def show_plan_table(plan: Plan, out: Out) -> None:
    """The table of a dry run, for people."""
    rows = [
        [
            output.type.name,
            human_bytes(output.size),
            f"{plan.bits_per_weight(output):.2f}",
            str(len(output.files)),
            _mix_text(output),
        ]
        for output in plan.outputs
    ]
    headers = [
        ("type", "left"),
        ("size", "right"),
        ("bits/weight", "right"),
        ("files", "right"),
        ("tensors by type", "left"),
    ]
    out.table(headers, rows)


def planned_documents(plan: Plan) -> list[dict[str, Any]]:
    """What the document of a dry run says of each output."""
    return [
        {
            "type": output.type.name,
            "bytes": output.size,
            "bits_per_weight": round(plan.bits_per_weight(output), 4),
            "files": [{"name": file.name, "bytes": file.size} for file in output.files],
            "type_mix": output.mix,
            "tensors": {choice.name: choice.type.name for choice in output.choices},
        }
        for output in plan.outputs
    ]


def _model_facts(plan: Plan) -> dict[str, Any]:
    return {
        "name": plan.model.name,
        "family": plan.model.family,
        "origin": dict(plan.model.origin),
        "folder": str(plan.request.folder),
        "parameters": plan.n_elements,
        "expected_peak_memory_bytes": plan.peak_memory,
        "disk_bytes": plan.disk,
        "threads": plan.threads,
        "warnings": list(plan.warnings),
    }


def show_result(result: Result, out: Out) -> None:
    """The closing table, or the document, of a conversion."""
    show_table(result, out)
    out.document(
        {
            "command": "gguf",
            "dry_run": False,
            **_model_facts(result.plan),
            "outputs": documents(result),
            "seconds": {name: round(value, 3) for name, value in result.seconds.items()},
            "peak_memory_bytes": result.peak_memory,
            "resumed_tensors": result.resumed,
        }
    )


def raise_failed(result: Result) -> None:
    """Raise VerificationError for the first file that failed a check."""
    if result.failed:
        first = result.failed[0]
        raise VerificationError(
            f"{first.output.type.label} failed its check of {first.failed[0].name}: {first.failed[0].detail};"
            f" the file is kept as {first.output.files[0].name}.failed"
        )


def show_table(result: Result, out: Out) -> None:
    """The closing table of a conversion, for people."""
    plan = result.plan
    headers = [
        ("type", "left"),
        ("size", "right"),
        ("bits/weight", "right"),
        ("error", "right"),
        ("logits", "right"),
        ("cpu", "right"),
        ("checks", "left"),
    ]
    out.table(headers, [_row(result, item) for item in result.verified])
    out.say("")
    for item in result.verified:
        suffix = ".failed" if item.failed else ""
        out.say("\n".join(str(plan.request.folder / f"{file.name}{suffix}") for file in item.output.files))
    count = len(result.verified)
    out.say(
        f"\n{count} type{'s' if count > 1 else ''} in one pass of {result.seconds['pass']:.1f} s, checked in"
        f" {result.seconds['verify']:.1f} s, peak memory {human_bytes(result.peak_memory)}"
    )
    out.say("error: the worst tensor's, relative; logits: correlation with the source's")


def documents(result: Result) -> list[dict[str, Any]]:
    """What the document says of each output."""
    return [_document(result, item) for item in result.verified]


def _row(result: Result, item: Verified) -> list[str]:
    output = item.output
    cpu = result.quantize_seconds.get(output.type.label)
    return [
        output.type.name,
        human_bytes(output.size),
        f"{result.plan.bits_per_weight(output):.2f}",
        f"{max(item.errors.values()):.1%}" if item.errors else "",
        "" if item.logit_correlation is None else f"{item.logit_correlation:.4f}",
        "" if cpu is None else f"{cpu:.1f} s",
        f"FAILED {item.failed[0].name}" if item.failed else _checks_text(item.checks),
    ]


def _document(result: Result, item: Verified) -> dict[str, Any]:
    output = item.output
    return {
        "type": output.type.name,
        "bytes": output.size,
        "bits_per_weight": round(result.plan.bits_per_weight(output), 4),
        "files": [
            {"name": file.name, "bytes": file.size, "sha256": item.sha256.get(file.name)} for file in output.files
        ],
        "type_mix": output.mix,
        "quantize_cpu_seconds": round(result.quantize_seconds.get(output.type.label, 0.0), 3),
        "worst_relative_error": max(item.errors.values(), default=None),
        "logit_correlation": item.logit_correlation,
        "verified": not item.failed,
        "checks": [{"name": check.name, "status": check.status, "detail": check.detail} for check in item.checks],
    }


def _checks_text(checks: Sequence[Check]) -> str:
    passed = sum(check.status == "passed" for check in checks)
    skipped = [check.name for check in checks if check.status == "skipped"]
    return f"{passed} passed" + (f", no {' or '.join(skipped)}" if skipped else "")
