"""What a conversion prints for people before it starts: warnings, needs, and the table of its plan."""

from quantkit.cli.conversion_document import conversion_facts
from quantkit.cli.output import Out, human_count
from quantkit.conversion.record import damaged_records
from quantkit.files import free_space
from quantkit.inspection.record import FILE_NAME
from quantkit.outputs.calibration import ImatrixOutput
from quantkit.outputs.gguf_files import GgufOutput
from quantkit.outputs.plan import ConversionPlan, OutputPlan, file_sizes, type_name
from quantkit.units import human_bytes


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
    """What runs the model over the text, where it is not quantkit on the CPU."""
    if plan.callback is None:
        of_gpu = plan.calibration.device_memory if plan.calibration is not None else 0
        return f"; on the GPU, about {human_bytes(of_gpu)} of its memory" if of_gpu else ""
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
            bits_text(plan, output),
            str(len(file_sizes(output))),
            _mix(output),
        ]
        for output in plan.outputs
    ]
    out.table(headers, rows)
    if plan.gguf is not None and plan.gguf.target_output is not None:
        out.say(f"the calibration chooses the types of {plan.gguf.target_output.type.name}; its size stays about this")
    out.say("dry run: nothing was written")


def bits_text(plan: ConversionPlan, output: OutputPlan) -> str:
    """Bits for each weight, or nothing for an output without weights."""
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
