"""The sections of a card on its files, their quality and memory, and the choice among them."""

from collections.abc import Sequence
from dataclasses import replace

from quantkit.measurement.document import Model, Quality, Report, Text
from quantkit.publish.card.escaping import block, bullets, link, plain, table
from quantkit.publish.card.facts import KINDS, CardFacts, Weights
from quantkit.publish.card.metadata import page_of
from quantkit.publish.card.provenance import checks_passed
from quantkit.report.figures import ABSENT, change, percent, plus_minus, size, whole
from quantkit.report.method import machine, method
from quantkit.report.tables import Table, memory, speed
from quantkit.report.verdict import verdict
from quantkit.units import listed

MACHINES = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)
"""Usual memory sizes of machines, in GB."""
RESERVED = 0.25
"""Fraction of a machine's memory that other programs need."""


def opening(facts: CardFacts) -> str:
    """The first paragraph: what the folder is."""
    model, weights = facts.model, facts.weights
    base = facts.base_model
    page = page_of(base) if base else None
    of = f"[{plain(base or '')}]({page})" if page else plain(base or model.name)
    if facts.kind == "gguf":
        types = listed([f"**{plain(output.type.upper())}**" for output in weights])
        sentence = f"{of} as GGUF for llama.cpp, Ollama and programs built on them, in {types}."
    else:
        where = "Macs: mlx-lm" if facts.kind.startswith("mlx") else "GPUs: vLLM, transformers and others"
        sentence = f"{of} quantized with {KINDS[facts.kind]}{_scheme(facts)}, for {where}."
    summary = facts.description.weights
    sizes = []
    if summary is not None:
        sizes.append(f"{_billions(summary.parameters)} parameters")
        if summary.active_parameters < summary.parameters:
            sizes.append(f"{_billions(summary.active_parameters)} active parameters per token")
    if facts.context_length:
        sizes.append(f"a context of {whole(facts.context_length)} tokens")
    tail = f" The model has {listed(sizes)}." if sizes else ""
    terms = f" Licence: {plain(facts.license)}." if facts.license else ""
    entries = facts.entries
    checked = len(entries) == len(weights) and all(checks_passed(entry) for entry in entries)
    how = " quantkit made the files and checked them against the source." if checked else ""
    return f"{sentence}{tail}{terms}{how}"


def files(facts: CardFacts) -> str:
    """The table of files, with figures if there is a report; every further text has its own table."""
    report = facts.report
    parts = [_files_table(facts, report, report.texts[0] if report and report.texts else None)]
    if report is not None:
        for text in report.texts[1:]:
            parts += [f"On {plain(text.name)}:", _files_table(facts, report, text)]
        if report.texts:
            parts.append(plain(method(report)))
    else:
        parts.append("The quality after quantization was not measured.")
    return "\n\n".join(parts)


def measured(facts: CardFacts) -> str | None:
    """Measured memory and speed and the machine, or None."""
    if facts.report is None:
        return None
    report = replace(facts.report, models=tuple(model for model in facts.report.models if _is_own(facts, model)))
    tables = [part for part in (memory(report), speed(report)) if part.rows]
    if not tables:
        return None
    rig = {name: value for name, value in machine(report) if name in ("processor", "memory", "GPU", "measured at")}
    sentence = f"Measured with llama.cpp on {plain(', '.join(rig.values()))}." if rig else "Measured with llama.cpp."
    contexts = {row.n_ctx for model in report.models for row in model.memory if row.n_ctx}
    if len(contexts) == 1:
        sentence += f" Memory is for a context of {whole(next(iter(contexts)))} tokens."
    return "\n\n".join([sentence, *(_report_table(part) for part in tables)])


def choice(facts: CardFacts) -> str:
    """A list that helps to choose a file: the verdict of the figures, then the best file for each memory size."""
    lines = [plain(sentence) for sentence in verdict(facts.report)] if facts.report is not None else []
    if facts.kind != "gguf":
        needed = size(facts.weights[0].bytes)
        lines.append(f"The weights take {needed} of GPU memory; the KV cache and the runtime need more.")
        return bullets(lines)
    best_first = sorted(facts.weights, key=_worth, reverse=True)
    rows: list[tuple[int, Weights]] = []
    for gigabytes in MACHINES:
        available = gigabytes * 1e9 * (1 - RESERVED)
        fits = next((weights for weights in best_first if _memory_needed(weights) <= available), None)
        if fits is not None and (not rows or rows[-1][1] is not fits):
            rows.append((gigabytes, fits))
    for gigabytes, weights in rows:
        kind, needed = plain(weights.type.upper()), _memory_text(weights)
        lines.append(f"With {gigabytes} GB of memory or more: **{kind}**, {needed}.")
    lines.append(
        f"These figures leave {RESERVED:.0%} of the memory to other programs. A longer context needs more. The model is"
        " fastest if a GPU holds the whole file; otherwise llama.cpp splits it between GPU and CPU memory."
    )
    return bullets(lines)


def conversation(facts: CardFacts) -> str | None:
    """A short conversation rendered by the chat template, or None."""
    template = facts.description.template
    if template is None or not template.sample:
        return None
    name = f" ({plain(template.name)})" if template.name else ""
    turns = listed([plain(role) for role in template.roles]) if template.roles else "a conversation"
    return f"The template{name} renders {turns} and the prompt for an answer as:\n\n{block(template.sample)}"


def _files_table(facts: CardFacts, report: Report | None, text: Text | None) -> str:
    on = f" ({plain(text.name)})" if text is not None and report is not None and len(report.texts) > 1 else ""
    headers = [
        "file",
        "type",
        "size",
        "bits/weight",
        f"perplexity{on}",
        "perplexity change",
        "KL mean",
        "same top token",
    ]
    rows = []
    reference = report.reference if report is not None else None
    if reference is not None and not _is_own(facts, reference):
        rows.append([plain(reference.label), "(reference)", size(reference.bytes), _bits(reference.bits_per_weight)])
        rows[-1] += _figures(reference.on(text.name) if text is not None else None)
    for weights in facts.weights:
        model = weights.measured
        quality = model.on(text.name) if model is not None and text is not None else None
        single = len(weights.files) == 1 and facts.kind == "gguf"
        name = link(weights.path, weights.path) if single else _with_shards(weights)
        kind = plain(weights.type.upper()) + (" (reference)" if model and model.is_reference else "")
        rows.append([name, kind, size(weights.bytes), _bits(weights.bits_per_weight), *_figures(quality)])
    used = [i for i in range(len(headers)) if any(row[i] != ABSENT for row in rows)]
    return table([headers[i] for i in used], [[row[i] for i in used] for row in rows])


def _figures(quality: Quality | None) -> list[str]:
    if quality is None:
        return [ABSENT] * 4
    kl = quality.kl.mean if quality.kl is not None else None
    return [plus_minus(quality.perplexity, decimals=2), change(quality.ratio), plus_minus(kl), percent(quality.top1)]


def _with_shards(weights: Weights) -> str:
    shards = f" ({len(weights.files)} files)" if len(weights.files) > 1 else ""
    return f"{link(weights.path, weights.path)}{shards}"


def _report_table(part: Table) -> str:
    return table([plain(header) for header in part.headers], [[plain(cell) for cell in row] for row in part.rows])


def _is_own(facts: CardFacts, model: Model) -> bool:
    """Whether the report's model is a file of this folder."""
    measured = (weights.measured for weights in facts.weights)
    return any(measured_model is not None and measured_model.label == model.label for measured_model in measured)


def _worth(weights: Weights) -> tuple[float, float]:
    """A key that sorts the best last: by KL divergence if the report has it, else by bits per weight."""
    quality = weights.measured.quality[0] if weights.measured and weights.measured.quality else None
    kl = quality.kl.mean.value if quality and quality.kl and quality.kl.mean else None
    if weights.measured is not None and weights.measured.is_reference:
        kl = 0.0
    return (-kl if kl is not None else -1e9, weights.bits_per_weight or 0.0)


def _measured_memory(weights: Weights) -> tuple[float, int | None] | None:
    """Bytes and context length of the measurement without GPU layers, or None."""
    for row in weights.measured.memory if weights.measured is not None else ():
        together = sum(device.total for device in row.devices)
        if row.gpu_layers == "0" and together:
            return max(together, row.peak_rss or 0.0), row.n_ctx
    return None


def _memory_needed(weights: Weights) -> float:
    needed = _measured_memory(weights)
    return needed[0] if needed is not None else weights.bytes


def _memory_text(weights: Weights) -> str:
    needed = _measured_memory(weights)
    if needed is None:
        return f"a file of {size(weights.bytes)}; the KV cache needs more (not measured)"
    context = f" with a context of {whole(needed[1])} tokens" if needed[1] else ""
    return f"{size(needed[0])}{context} (measured)"


def _scheme(facts: CardFacts) -> str:
    quantization = facts.description.quantization
    if quantization is None or not quantization.bits:
        return ""
    group = f", group size {quantization.group}" if quantization.group and quantization.group > 0 else ""
    return f" to {quantization.bits} bits{group}"


def _bits(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}"


def _billions(count: int) -> str:
    scaled, unit = (count / 1e9, "billion") if count >= 1e9 else (count / 1e6, "million")
    return f"{scaled:.3g} {unit}"


def shown(headings: Sequence[tuple[str, str | None]]) -> str:
    """The sections with text, under their headings."""
    return "\n\n".join(f"## {heading}\n\n{text}" for heading, text in headings if text)
