"""What a conversion prints for people at its end: the table of its outputs, the files, and what it took."""

import re
from collections.abc import Mapping, Sequence

from quantkit.cli.conversion_tables import bits_text
from quantkit.cli.output import Out, printable
from quantkit.conversion.gguf_layers import without_feedback
from quantkit.conversion.run import Result
from quantkit.errors import VerificationError
from quantkit.gguf.blocks import FORMATS
from quantkit.outputs.gguf_files import GgufPlan
from quantkit.outputs.plan import final_paths, type_name
from quantkit.quant.neurons import Moved
from quantkit.units import human_bytes, listed
from quantkit.verify import Check, Verified


def show_result(result: Result, out: Out) -> None:
    """Print the table of the outputs, the files, and what the conversion took."""
    plan = result.plan
    _warn_experts(result, out)
    _warn_compiler(result, out)
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
        _show_reordered(plan.gguf, result.moved, out)
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
    on_gpu = f", on the GPU {human_bytes(result.gpu_peak_memory)}" if result.gpu_peak_memory else ""
    done.append(f"checked in {result.seconds['verify']:.1f} s, peak memory {human_bytes(result.peak_memory)}{on_gpu}")
    out.say(f"\n{', '.join(done)}")
    if result.traffic is not None:
        traffic = result.traffic
        again = f"{human_bytes(traffic.again)} of them a second time" if traffic.again else "each byte once"
        out.say(f"streamed {human_bytes(traffic.bytes)} in {traffic.requests} requests, {again}")
    if plan.gguf is not None or plan.direct_folders:
        out.say(f"error: the worst tensor's, relative; {compared}: correlation with the source's")
    if plan.calibrated_folders:
        names = listed(sorted(folder.label for folder in plan.calibrated_folders))
        out.say(f"error of {names}: the worst linear's, squared error of its output over the calibration text")


def _show_feedback(gguf: GgufPlan, rounded: Mapping[str, Sequence[str]], out: Out) -> None:
    """The tensors that were rounded without error feedback, and why."""
    out.say("")
    for output in gguf.outputs:
        plain = without_feedback(output, rounded)
        reasons: dict[str, list[str]] = {}
        for name, reason in plain.items():
            reasons.setdefault(reason, []).append(name)
        count = sum(choice.type in FORMATS and choice.name not in plain for choice in output.choices)
        words = [f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {r}" for r, names in reasons.items()]
        out.say(
            f"{output.type.name}: {count} tensors rounded with error feedback"
            + (f", {len(plain)} as llama.cpp does ({'; '.join(words)})" if plain else "")
        )


def _show_reordered(gguf: GgufPlan, moved: Mapping[str, Moved], out: Out) -> None:
    """The files in which neurons have another order than in the source."""
    for output in gguf.outputs if gguf.request.reorder else ():
        count = sum(entry.part == "down" and output.label in entry.labels for entry in moved.values())
        if count:
            out.say(
                f"{output.type.name}: neurons of {count} feed-forwards reordered; a LoRA adapter of the source does not"
                " fit this file"
            )
        else:
            out.say(
                f"{output.type.name}: no neurons reordered; it needs a gated feed-forward without biases whose down"
                " matrix is Q6_K"
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
        bits_text(result.plan, item.output),
        f"{max(item.errors.values()):.1%}" if item.errors else "",
        "" if item.logit_correlation is None else f"{item.logit_correlation:.4f}",
        "" if cpu is None else f"{cpu:.1f} s",
        f"FAILED {item.failed[0].name}" if item.failed else _checks_text(item.checks),
    ]


def _checks_text(checks: Sequence[Check]) -> str:
    passed = sum(check.status == "passed" for check in checks)
    skipped = [check.name for check in checks if check.status == "skipped"]
    return f"{passed} passed" + (f", no {' or '.join(skipped)}" if skipped else "")


def _warn_compiler(result: Result, out: Out) -> None:
    if result.not_compiled is not None:
        out.warn(
            "torch could not compile the rounding, which took several times as long"
            f" ({printable(result.not_compiled[:200])}); install a C compiler, Python's headers and triton"
        )


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
