"""What a conversion prints for people: warnings and needs, the table of its plan, the table of its result."""

import re
from collections.abc import Mapping, Sequence

from quantkit.cli.conversion_document import conversion_facts
from quantkit.cli.output import Out, human_bytes, human_count
from quantkit.conversion.gguf_layers import without_feedback
from quantkit.conversion.record import damaged_records
from quantkit.conversion.run import Result
from quantkit.errors import VerificationError
from quantkit.files import free_space
from quantkit.gguf.blocks import FORMATS
from quantkit.inspection.record import FILE_NAME
from quantkit.outputs.calibration import ImatrixOutput
from quantkit.outputs.gguf_files import GgufOutput, GgufPlan
from quantkit.outputs.plan import ConversionPlan, OutputPlan, file_sizes, final_paths, type_name
from quantkit.verify import Check, Verified


def announce(plan: ConversionPlan, out: Out, *, logits: bool | None = None) -> None:
    """Print the warnings, the model, the calibration text, and the disk and memory of the whole conversion.

    `logits`: whether the check of logits is requested; None if it depends on the memory.
    """
    for warning in plan.warnings:
        out.warn(warning)
    for fault in damaged_records(plan):
        out.warn(f"{fault}; the conversion renames it to {FILE_NAME}.bak")
    for note in plan.notes:
        out.note(note)
    facts = conversion_facts(plan)
    words = [str(facts["family"] or facts["architecture"]), f"{human_count(facts['parameters'])} parameters"]
    if plan.gguf is not None:
        tensors = plan.gguf.model.tensors
        kinds = "/".join(sorted({tensor.type.name.lower() for tensor in tensors if len(tensor.shape) > 1}))
        words += [f"{len(tensors)} tensors", kinds]
    elif facts["layers"] is not None:
        words.append(f"{facts['layers']} layers")
    out.note(f"{plan.name}: {', '.join(words)}")
    if plan.samples is not None:
        samples = plan.samples
        chat = ", with the chat template" if samples.chat else ""
        count, length = samples.tokens.shape
        out.note(f"calibrates on {count} samples of {length} tokens of {samples.name}{chat}{_runner(plan)}")
    out.note(
        f"needs {human_bytes(plan.disk)} of disk ({human_bytes(free_space(plan.output))} free) and about"
        f" {human_bytes(plan.peak_memory)} of memory, {plan.threads} thread{'s' if plan.threads > 1 else ''}"
    )
    streamed = plan.checkpoint.streamed if plan.checkpoint is not None else None
    if streamed is not None:
        out.note(f"streams {human_bytes(streamed.total)}; {human_bytes(streamed.memory)} of memory hold the latest")
        if logits is None and streamed.total > streamed.memory:
            out.note("logits are not compared, because that reads the source again; add --logits to do so")
            logits = False
    if plan.gguf is not None and logits is not False and plan.gguf.llama_memory:
        out.note(f"llama.cpp takes up to {human_bytes(plan.gguf.llama_memory)} more while it computes logits")


def _runner(plan: ConversionPlan) -> str:
    """Who runs the model over the text, where it is not quantkit."""
    if plan.callback is None:
        return ""
    if plan.callback.file is not None:
        return "; llama.cpp runs the file"
    return f"; llama.cpp runs a temporary {plan.callback.file_type.name} GGUF"


def show_plan(plan: ConversionPlan, out: Out) -> None:
    """Print the table of a dry run."""
    headers = [("type", "left"), ("size", "right"), ("bits/weight", "right"), ("files", "right"), ("tensors", "left")]
    rows = [
        [
            type_name(output),
            human_bytes(output.size),
            _bits_text(plan, output),
            str(len(file_sizes(output))),
            _mix(output),
        ]
        for output in plan.outputs
    ]
    out.table(headers, rows)
    if plan.gguf is not None and plan.gguf.target_output is not None:
        out.say(f"the calibration chooses the types of {plan.gguf.target_output.type.name}; its size stays about this")
    out.say("dry run: nothing was written")


def show_result(result: Result, out: Out) -> None:
    """Print the table of the outputs, the files, and what the conversion took."""
    plan = result.plan
    _warn_experts(result, out)
    compared = "embeddings" if _gives_embeddings(result) else "logits"
    headers = [("type", "left"), *((name, "right") for name in ("size", "bits/weight", "error", compared, "cpu"))]
    out.table([*headers, ("checks", "left")], [_row(result, item) for item in result.outputs])
    out.say("")
    for item in result.outputs:
        out.say("\n".join(f"{path}{'.failed' if item.failed else ''}" for path in final_paths(item.output)))
    if result.choice is not None and plan.gguf is not None:
        _show_choice(plan.gguf, result.choice.expected, out)
    if plan.gguf is not None and plan.gguf.request.solver == "feedback":
        _show_feedback(plan.gguf, result.rounded, out)
    done = []
    if plan.samples is not None:
        if plan.imatrix is not None:
            done.append(f"{plan.imatrix.entries} tensors over {plan.samples.tokens.size} tokens")
        calibrated = f"{len(plan.calibration.layers)} layers" if plan.calibration is not None else "inputs by llama.cpp"
        done.append(f"{calibrated} calibrated in {result.seconds['calibrate']:.1f} s")
    if plan.direct_folders:
        count = len(plan.direct_folders)
        done.append(f"{count} folder{'s' if count > 1 else ''} in one pass of {result.seconds['folders']:.1f} s")
    if plan.gguf is not None:
        count = len(plan.gguf.outputs)
        done.append(f"{count} GGUF type{'s' if count > 1 else ''} in one pass of {result.seconds['pass']:.1f} s")
    done.append(f"checked in {result.seconds['verify']:.1f} s, peak memory {human_bytes(result.peak_memory)}")
    out.say(f"\n{', '.join(done)}")
    if result.traffic is not None:
        traffic = result.traffic
        again = f"{human_bytes(traffic.again)} of them a second time" if traffic.again else "each byte once"
        out.say(f"streamed {human_bytes(traffic.bytes)} in {traffic.requests} requests, {again}")
    if plan.gguf is not None or plan.direct_folders:
        out.say(f"error: the worst tensor's, relative; {compared}: correlation with the source's")
    if plan.calibrated_folders:
        names = " and ".join(sorted(folder.label for folder in plan.calibrated_folders))
        out.say(f"error of {names}: the worst linear's, squared error of its output over the calibration text")


def _show_feedback(gguf: GgufPlan, rounded: Mapping[str, Sequence[str]], out: Out) -> None:
    """The tensors that were rounded without error feedback, and why."""
    out.say("")
    for output in gguf.outputs:
        plain = without_feedback(output, rounded)
        reasons: dict[str, list[str]] = {}
        for name, reason in plain.items():
            reasons.setdefault(reason, []).append(name)
        count = sum(choice.type in FORMATS for choice in output.choices) - len(plain)
        words = [f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {r}" for r, names in reasons.items()]
        out.say(
            f"{output.type.name}: {count} tensors rounded with error feedback"
            + (f", {len(plain)} as llama.cpp does ({'; '.join(words)})" if plain else "")
        )


def _show_choice(gguf: GgufPlan, expected: float, out: Out) -> None:
    """The types of a file of a given size, by kind of tensor."""
    output = gguf.target_output
    assert output is not None
    kinds: dict[str, dict[str, int]] = {}
    for choice in output.choices:
        if choice.type.name != "F32":
            counts = kinds.setdefault(re.sub(r"^blk\.\d+\.|\.weight$", "", choice.name), {})
            counts[choice.type.name.lower()] = counts.get(choice.type.name.lower(), 0) + 1
    rows = [[kind, " ".join(f"{n}x{name}" for name, n in sorted(counts.items()))] for kind, counts in kinds.items()]
    out.say("")
    out.table([(f"tensors of {output.type.name}", "left"), ("types", "left")], rows)
    out.say(f"expected KL divergence of {output.type.name}, to compare such files: {expected:.3f}")


def raise_failed(result: Result) -> None:
    """Raise VerificationError for the first output that failed a check."""
    for item in result.failed:
        check, path = item.failed[0], final_paths(item.output)[0]
        raise VerificationError(
            f"{item.output.label} failed its check of {check.name}: {check.detail}; it is kept as {path.name}.failed"
        )


def _gives_embeddings(result: Result) -> bool:
    """Whether the check after writing compared embeddings in place of logits."""
    return any(check.name == "embeddings" for item in result.outputs for check in item.checks)


def _row(result: Result, item: Verified) -> list[str]:
    cpu = result.quantize_seconds.get(item.output.label)
    return [
        type_name(item.output),
        human_bytes(item.output.size),
        _bits_text(result.plan, item.output),
        f"{max(item.errors.values()):.1%}" if item.errors else "",
        "" if item.logit_correlation is None else f"{item.logit_correlation:.4f}",
        "" if cpu is None else f"{cpu:.1f} s",
        f"FAILED {item.failed[0].name}" if item.failed else _checks_text(item.checks),
    ]


def _bits_text(plan: ConversionPlan, output: OutputPlan) -> str:
    bits = plan.bits_per_weight(output)
    return "" if bits is None else f"{bits:.2f}"


def _mix(output: OutputPlan) -> str:
    if isinstance(output, GgufOutput):
        return " ".join(
            f"{count}x{kind.lower()}" for kind, count in sorted(output.mix.items(), key=lambda item: -item[1])
        )
    if isinstance(output, ImatrixOutput):
        return f"{output.entries} covered"
    grid = output.request.grid
    group = f", group {grid.group}" if grid.group > 0 else ""
    return f"{len(output.quantized)} linears of {grid.bits} bit{group}; {len(output.kept)} kept"


def _checks_text(checks: Sequence[Check]) -> str:
    passed = sum(check.status == "passed" for check in checks)
    skipped = [check.name for check in checks if check.status == "skipped"]
    return f"{passed} passed" + (f", no {' or '.join(skipped)}" if skipped else "")


def _warn_experts(result: Result, out: Out) -> None:
    starved = sum(len(experts) for experts in result.starved.values())
    if starved:
        layer, experts = next(iter(result.starved.items()))
        out.warn(
            f"{starved} experts received few tokens (layer {layer}: {', '.join(experts)}) and were calibrated on tokens"
            " of other experts too; a longer --calibration text would reach them"
        )
    if result.unseen_experts:
        name, count = next(iter(result.unseen_experts.items()))
        out.warn(
            f"{sum(result.unseen_experts.values())} matrices of {len(result.unseen_experts)} tensors belong to experts"
            f" that received no token ({name}: {count}), so their inputs have equal weights; a longer --calibration"
            " text would reach them"
        )
